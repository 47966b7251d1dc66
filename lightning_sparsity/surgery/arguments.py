"""What surgery is given: one sentence for each mistake that would surface far from where it is."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_sparsity.surgery.flow import ChannelFlow
from lightning_sparsity.surgery.plan import Plan


def check_plan(model: object, plan: object) -> None:
    """Refuse what is no model, and what is no plan.

    Raises:
        ValueError: If one of both is something else; with a guess at what was meant.
    """
    check_model_kind("model", model)
    if isinstance(plan, Plan):
        return
    if isinstance(plan, ChannelFlow):
        cure = "did you mean flow.plan_by(0.5), or flow.plan(dead)?"
    elif isinstance(plan, str):
        cure = "for a slim network on disk use surgery.load(model, folder)."
    else:
        cure = "make one with surgery.trace(model, example_inputs).plan_by(0.5)."
    raise ValueError(f"plan needs a Plan, got {_shown(plan)}: {cure}")


def check_model_kind(name: str, model: object) -> None:
    """Refuse what is no model."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} needs a network, an nn.Module, got {_shown(model)}.")


def check_verify(verify: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(verify, bool):
        raise ValueError(f"verify needs True or False, got {_shown(verify)}.")


def check_batches(batches: object) -> None:
    """Refuse one batch in the place of several."""
    if isinstance(batches, (Tensor, str, dict)) or not isinstance(batches, Iterable):
        raise ValueError(
            f"batches needs several batches, such as a list of them, got {_shown(batches)}: for a "
            "single one use [batch]."
        )


def check_optimizer(optimizer: object) -> None:
    """Refuse what is no optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer needs a torch.optim.Optimizer, got {_shown(optimizer)}.")


def _shown(x: object) -> str:
    """A value as it may stand in a message."""
    plain = x is None or isinstance(x, (str, int, float))
    return repr(x)[:60] if plain else f"a {type(x).__name__}"
