"""What lies between a layer and those that read it: a short piece of a long tape."""

from collections import defaultdict
from collections.abc import Mapping
from heapq import heappop, heappush

from torch import nn

from lightning_sparsity.surgery.tape import Call, Site, Step, Tape, Value, Weight, swapped

Places = Mapping[Value | str, list[int]]


def places(tape: Tape) -> Places:
    """For each value the steps that read it, and for each layer by name its own: their places."""
    behind: defaultdict[Value | str, list[int]] = defaultdict(list)
    for i, step in enumerate(tape.steps):
        if not step.training:
            for value in step.inputs:
                behind[value].append(i)
            if step.call is not None:
                behind[step.call.site.name].append(i)
    return behind


def downstream(
    tape: Tape,
    behind: Places,
    name: str,
    modules: Mapping[str, nn.Module],
) -> tuple[list[Step], list[Call]]:
    """The steps from a BatchNorm to the layers that read it, and those layers' calls."""
    steps, readers, seen = list[Step](), list[Call](), -1
    ahead = behind[name].copy()  # in order, as every step comes after what it reads
    while ahead:
        at = heappop(ahead)
        if at == seen:
            continue
        seen, step = at, tape.steps[at]
        site: Site | None = None if step.call is None else step.call.site
        if site is None or site.name == name or isinstance(modules[site.name], nn.PReLU):
            steps.append(step)
            for value in step.results:
                for reader in behind.get(value, []):
                    heappush(ahead, reader)
        elif step.call is not None and site.can_select:
            readers.append(step.call)
    return steps, readers


def part_of(modules: Mapping[str, nn.Module], steps: list[Step]) -> nn.Module:
    """A module that holds what steps need of a model, under the same names."""
    part, weights = nn.Module(), list[object]()
    for step in steps:
        if step.call is not None:
            part._modules[step.call.site.name] = modules[step.call.site.name]
        swapped((step.function.args, step.function.kwargs), weights.append)
    for weight in weights:
        if isinstance(weight, Weight):
            owner, _, name = weight.name.rpartition(".")
            if owner:
                part._modules[owner] = modules[owner]
            elif name in modules[""]._parameters:
                part._parameters[name] = modules[""]._parameters[name]
            else:
                part._buffers[name] = modules[""]._buffers[name]
    return part
