"""A trial of the cut after the first batch: what would be refused at the end is refused then."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn

from lightning_sparsity import slimming, surgery
from lightning_sparsity.callbacks.network import first_examples
from lightning_sparsity.surgery.copying import shared_copy
from lightning_sparsity.surgery.running import each_tensor

HALF, SOME, FEW = 0.5, 0.3, 0.1
"""Which fractions of channels, rows and columns are dead: one after the other, some is half."""
Amount = float | surgery.Budget | None


def follow(network: nn.Module, inputs: Any) -> surgery.ChannelFlow:  # noqa: ANN401
    """Trace a network on the first examples of a batch, or on all where it takes no fewer.

    Raises:
        ValueError: If the network cannot be traced on either.
    """
    try:
        return surgery.trace(network, each_tensor(first_examples(inputs), _kept))
    except ValueError:
        return surgery.trace(network, each_tensor(inputs, _kept))


@torch.no_grad()
def try_cut(
    flow: surgery.ChannelFlow,
    amount: Amount,
    *,
    gather: bool,
    compensate: slimming.Compensate = "shift",
) -> tuple[nn.Module, surgery.Plan]:
    """Cut a copy of the network that was traced, with the equivalence check.

    About half of the channels are dead in it, always the same ones. What the amount asks for would
    not do: of fresh scales, which are all alike, it takes all or nothing, and a network with one
    channel per layer answers the same to everything. Nothing of the network changes.

    Args:
        flow: The trace.
        amount: How much to cut, which has to be possible; None: what is zero.
        gather: Whether layers may pick their inputs.
        compensate: What makes up for channels whose scale is not zero.

    Returns:
        The slim network and its plan, which removes nothing only if nothing can be removed.

    Raises:
        ValueError: If the amount cannot be met, or nothing that it names can be cut.
        RuntimeError: If the slim network fails the equivalence check.
    """
    generator = torch.Generator().manual_seed(0)
    round_to = amount.round_to if isinstance(amount, surgery.Budget) else 1
    asked = None if amount is None else flow.plan_by(amount, gather=gather)
    if amount is None:
        flow = _with(flow, _with_zeros(flow, generator))
    fraction = SOME if amount is None else HALF
    dead = _scales(flow, fraction, generator, gather=gather)
    plan = flow.plan(dead, gather=gather, round_to=round_to)
    if asked is not None and not plan.removes_anything():
        plan = asked
    if compensate == "mean":
        better = surgery.compensate(flow.model, plan, [flow.example_inputs])
        plan = _with(flow, better).plan(plan.dead, gather=gather, round_to=round_to)
        return surgery.slim(better, plan), plan
    return surgery.slim(flow.model, plan), plan


def try_files(small: nn.Module, plan: surgery.Plan, folder: Path) -> None:
    """Write the files of a cut where they will go, and remove them with the folders made for them.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If the network cannot be stored.
    """
    made: list[Path] = []
    try:
        made = [path for path in [folder, *folder.parents] if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="trial-", dir=folder) as trial:
            surgery.save(small, plan, trial)
    except OSError as error:
        raise OSError(
            f"The slim network cannot be written to the folder {str(folder)!r} "
            f"({type(error).__name__}: {error}). Make room or name another folder: dirpath=..., or "
            "the Trainer's default_root_dir."
        ) from error
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def everywhere(trainer: pl.Trainer, work: Callable[[], None]) -> None:
    """Do a piece of work in every process. Where it fails in one, all of them stop: none waits."""
    error: Exception | None = None
    try:
        work()
    except StopIteration as found:  # to a Trainer it would mean that there are no more batches
        error = RuntimeError(f"The cut failed: {found!r}.")
        error.__cause__ = found
    except Exception as found:
        error = found
    if not trainer.strategy.reduce_boolean_decision(error is None):
        raise error or RuntimeError("The cut failed in another process, which says why.")


@contextmanager
def naming_checkpoint(trainer: pl.Trainer, amount: Amount) -> Iterator[None]:
    """After training: an error in here also says from what, and how, the cut can be made later."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        path = _last_checkpoint(trainer)
        if not path:
            raise
        raise same_kind(
            error,
            f"{error} The last checkpoint is {path!r}. It can be cut with `lightning-sparsity slim "
            f"--checkpoint {path} {_option(amount)}`, or loaded into a module whose network "
            "slimming.cut takes.",
        ) from error


def refuse_nan(network: nn.Module) -> None:
    """After training: refuse weights of which nothing is left to cut, or to compare."""
    for name, x in network.named_parameters():
        if bool(x.isnan().any()):
            raise ValueError(
                f"Nothing was cut, as {name!r} holds NaN: the training has diverged. Lower the "
                "learning rate or lam."
            )


def same_kind(error: Exception, message: str) -> Exception:
    """An error of the same kind with another message."""
    kinds: tuple[type[Exception], ...] = (ValueError, OSError, RuntimeError)
    return next(kind for kind in kinds if isinstance(error, kind))(message)


def _with(flow: surgery.ChannelFlow, model: nn.Module) -> surgery.ChannelFlow:
    """The same flow for a model that differs in its weights alone."""
    other = copy.copy(flow)
    other.model = model
    return other


def _scales(
    flow: surgery.ChannelFlow, fraction: float, generator: torch.Generator, *, gather: bool
) -> dict[str, Tensor]:
    """Dead channels of each BatchNorm; without gathering, tied channels die together."""
    together = _drawn(flow.tape.variables, fraction, generator)
    classes = {name: flow.classes[flow.tape.sites[name].rows] for name in flow.norms}
    return {
        name: _drawn(n, fraction, generator) if gather else together[classes[name]]
        for name, n in flow.norms.items()
    }


def _with_zeros(flow: surgery.ChannelFlow, generator: torch.Generator) -> nn.Module:
    """A copy of the network in which some rows and columns of its weights are zero."""
    model = shared_copy(flow.model)
    modules: dict[str, Any] = dict(model.named_modules())
    for name, site in flow.tape.sites.items():
        weight = modules[name]._parameters.get("weight")
        if weight is None or site.layer.kind == "channel":
            continue
        zeroed = weight.detach().clone()
        for dim, fraction in zip(site.layer.weight_dims, (SOME, FEW), strict=True):
            dead = _drawn(zeroed.size(dim), fraction, generator).nonzero().flatten()
            zeroed.index_fill_(dim, dead.to(zeroed.device), 0)
        modules[name].weight = nn.Parameter(zeroed, requires_grad=weight.requires_grad)
    return model


def _drawn(n: int, fraction: float, generator: torch.Generator) -> Tensor:
    """A mask of about this fraction, but never of the first."""
    mask = torch.rand(n, generator=generator) < fraction
    mask[0] = False
    return mask


def _kept(x: Tensor) -> Tensor:
    return x.detach().clone()


def _last_checkpoint(trainer: pl.Trainer) -> str:
    callbacks: list[Checkpoint] = trainer.checkpoint_callbacks
    paths = [
        getattr(callback, name, "")
        for name in ("last_model_path", "best_model_path")
        for callback in callbacks
    ]
    return next((str(path) for path in paths if path), "")


def _option(amount: Amount) -> str:
    """The amount in the words of the command `slim`."""
    if not isinstance(amount, surgery.Budget):
        return f"--amount {'zeros' if amount is None else amount}"
    number = next(getattr(amount, n) for n in ("share", "keep", "at") if hasattr(amount, n))
    name = "" if isinstance(amount, surgery.Share) else type(amount).__name__
    asked = f"'{name}({number})'" if name else f"{number}"
    return f"--amount {asked}" + (f" --round-to {amount.round_to}" if amount.round_to > 1 else "")
