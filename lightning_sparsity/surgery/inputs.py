"""Inputs that a proof has not seen yet: like the example, other values and one more in a batch."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_sparsity.surgery.running import Inputs, each_tensor, tensors_in

Draw = Callable[[Tensor], Tensor]


def fresh_inputs(example: Inputs) -> Iterator[tuple[Inputs, str]]:
    """Inputs in the form of an example, in the order in which to try them, each with its words.

    Entries are drawn from a normal distribution with the example's mean and deviation. A model that
    refuses those gets entries of the example, shuffled, which stay in the range that it knows.
    Whole numbers and truth values are always shuffled.
    """
    generator = torch.Generator().manual_seed(1)

    def shuffled(x: Tensor) -> Tensor:
        order = torch.randint(x.numel(), (x.numel(),), generator=generator).to(x.device)
        return x.flatten()[order].view(x.shape) if x.numel() else x.clone()

    def normal(x: Tensor) -> Tensor:
        if not x.is_floating_point() or not x.numel():
            return shuffled(x)
        wide = x.double()
        spread = float(wide.std(correction=0)) or 1.0
        drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        return (wide.mean() + spread * drawn).to(x.dtype)

    for draw, what in ((normal, "fresh inputs"), (shuffled, "shuffled inputs")):
        larger = _larger(example, draw)
        if larger is not None:
            yield larger[0], f"{what} of batch size {larger[1]}"
        yield each_tensor(example, draw), what


def _larger(example: Inputs, draw: Draw) -> tuple[Inputs, int] | None:
    """Inputs with one example more, and how many those are; None where no batch can be seen."""
    if isinstance(example, list):
        images = [draw(x) for x in example if isinstance(x, Tensor)]
        whole = images and len(images) == len(example)
        return ([*images, draw(example[0])], len(example) + 1) if whole else None
    sizes = {x.size(0) if x.dim() else 0 for x in tensors_in(example)}
    if len(sizes) != 1 or 0 in sizes:
        return None

    def longer(x: Tensor) -> Tensor:
        return torch.cat([draw(x), draw(x[:1])])

    return each_tensor(example, longer), sizes.pop() + 1
