"""A network in one file that runs where this package is not installed: `.pt2` or `.onnx`."""

import copy
import importlib.util
import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from lightning_sparsity.sparse_file import write
from lightning_sparsity.surgery.observing import relative_difference
from lightning_sparsity.surgery.running import call, each_tensor, tensors_in
from lightning_sparsity.waiting import Waiting

TOLERANCE = 1e-4
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Run = Callable[[Any], list[Tensor]]


def export(model: nn.Module, example_inputs: Any, path: str | Path) -> float:  # noqa: ANN401
    r"""Write a network into one file that runs without this package, and prove that file.

    The content of the file is loaded again and run on the examples, and on the first of them alone,
    before it is written. With $f$ the model and $g$ what was loaded, every tensor of their outputs
    has to agree:

    $$ \max_x \frac{\|f(x) - g(x)\|_\infty}{\|f(x)\|_\infty} \le 10^{-4} $$

    The model goes into the file as it is in evaluation mode on the CPU, in its own precision, with
    the channels that layers of slim networks pick and fill in. The file takes batches of any size
    if all tensors in the examples have the same first dimension and the model can be exported and
    proved that way. Otherwise it takes the shapes of the examples alone, and a warning says why.

    Args:
        model: Any network, slim or not. It is not changed.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments. An example
            alone is traced twice over, because batches of one behave in ways of their own.
        path: Where the file goes. `.pt2` is written by `torch.export`, `.onnx` by `torch.onnx`,
            which needs onnx, onnxscript and onnxruntime. Folders are made if need be.

    Returns:
        The largest relative difference between the outputs of the file and of the model.

    Raises:
        ValueError: If the suffix is neither `.pt2` nor `.onnx`.
        ModuleNotFoundError: If a package that `.onnx` needs is not installed.
        RuntimeError: If the model cannot be exported, or the file would differ. None is written.

    Example:
        ```python
        import torch
        from lightning_sparsity import surgery

        surgery.export(small, torch.randn(2, 3, 32, 32), "small.onnx")
        ```
    """
    path = Path(path)
    _check_suffix(path)
    still = copy.deepcopy(model).cpu().eval()
    inputs = each_tensor(example_inputs, lambda x: x.detach().cpu())
    made, reason = None, "they have no first dimension in common."
    if batches := _batches(inputs):
        try:
            made = _made(still, batches, path, Dim("batch"))
        except RuntimeError as error:
            reason = str(error)
    if made is None:
        made = _made(still, [inputs], path, None)
        warnings.warn(
            f"{path.name} takes inputs of the shapes of the examples alone, not batches of any "
            f"size: {reason}",
            stacklevel=2,
        )
    content, difference = made
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content)
    return difference


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"export writes files ending in .pt2 or .onnx, got {str(path)!r}.")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        raise ModuleNotFoundError(
            f'.onnx needs {", ".join(missing)}: pip install "lightning-sparsity[onnx]".'
        )


def _batches(inputs: Any) -> list[Any]:  # noqa: ANN401
    """At least two examples and the first one alone; nothing if tensors share no dimension."""
    sizes = {x.size(0) if x.dim() else 0 for x in tensors_in(inputs)}
    if len(sizes) != 1 or 0 in sizes:
        return []
    if sizes == {1}:
        return [each_tensor(inputs, lambda x: torch.cat([x, x])), inputs]
    return [inputs, each_tensor(inputs, lambda x: x[:1])]


@torch.no_grad()
def _made(model: nn.Module, cases: list[Any], path: Path, batch: Dim | None) -> tuple[bytes, float]:
    """The content of a file, traced on the first case, and its largest difference on all cases."""
    try:
        with Waiting(f"Exporting to {path.name}"):
            program = _traced(model, each_tensor(cases[0], Tensor.clone), batch)
            content, run = (_pt2 if path.suffix == ".pt2" else _onnx)(program)
            worst = max(
                relative_difference(
                    list(tensors_in(call(model, each_tensor(case, Tensor.clone)))),
                    run(each_tensor(case, Tensor.clone)),
                )
                for case in cases
            )
    except Exception as error:  # a model may hold anything, and so may raise anything
        (reason, *_) = [*str(error).strip().splitlines(), type(error).__name__]
        raise RuntimeError(
            f"{type(model).__name__} cannot be exported to {path.name}: {reason}"
        ) from error
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f"{path.name} would differ from {type(model).__name__} by {worst:.1e} (relative), more "
            f"than {TOLERANCE:.0e}."
        )
    return content, worst


def _traced(model: nn.Module, inputs: Any, batch: Dim | None) -> ExportedProgram:  # noqa: ANN401
    shapes = ShapesCollection()
    for x in tensors_in(inputs) if batch is not None else ():
        shapes[x] = {0: batch}
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    program = torch.export.export(
        model, args, kwargs, dynamic_shapes=shapes if batch is not None else None, strict=False
    )
    for node in program.graph.nodes:  # paths and source lines of this machine
        node.meta.pop("stack_trace", None)
    return program


def _pt2(program: ExportedProgram) -> tuple[bytes, Run]:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    return file.getvalue(), lambda inputs: list(tensors_in(call(loaded, inputs)))


def _onnx(program: ExportedProgram) -> tuple[bytes, Run]:
    import onnxruntime

    made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None  # only the older exporter returns nothing
    content = made.model_proto.SerializeToString()  # weights included
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Any) -> list[Tensor]:  # noqa: ANN401
        arrays = [x.numpy() for x in tensors_in(inputs)]
        feed = dict(zip(names, arrays, strict=True))
        return [torch.from_numpy(y) for y in session.run(None, feed)]

    return content, run
