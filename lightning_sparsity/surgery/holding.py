"""Keep whole what a model's own code counts: learned where a slim model came out different."""

import torch
from torch import Tensor

from lightning_sparsity.surgery.labels import ROOT, compact
from lightning_sparsity.surgery.locate import Place
from lightning_sparsity.surgery.tape import Tape, Value


def hold_place(tape: Tape, place: Place) -> bool:
    """Freeze what a stretch of the tape reads, as little of it as is not frozen yet.

    First what was read as a number there, then all that is read or made there, then the layers
    there with all their attributes. Where all of that is frozen already, the stretch grows, to
    twice its length each time.

    Returns:
        Whether anything was left to be frozen.
    """
    first, last, length = place.first, place.last, max(place.last - place.first, 1)
    why = (place.module, place.op or "its code", "counts channels")
    while True:
        numbers = [value for at, value in tape.sizes if first <= at <= last]
        steps = tape.steps[first:last]
        values = [value for step in steps for value in (*step.inputs, *step.results)]
        for chosen in (numbers, values):
            fresh = _not_held(tape, chosen)
            if fresh.numel():
                tape.hold(fresh, why)
                return True
        sites = {step.call.site for step in steps if step.call is not None}
        free = [site for site in sites if site.can_select or site.can_scatter]
        for site in free:
            tape.keep_whole(site, (site.name, place.op or "its code", "counts channels"))
        if free:
            return True
        if first == 0 and last == len(tape.steps):
            return False
        first, last = max(first - length, 0), min(last + length // 2, len(tape.steps))
        length *= 2


def _not_held(tape: Tape, values: list[Value]) -> Tensor:
    found = [compact(value.labels, value.labels).flatten() for value in values]
    variables = torch.cat(found).unique() if found else torch.empty(0, dtype=torch.long)
    return variables[(variables != ROOT) & ~tape.is_held(variables)]
