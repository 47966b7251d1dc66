"""The cut at the end of a training: what every callback that removes channels does alike."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor, nn

from lightning_sparsity import slimming, surgery
from lightning_sparsity.callbacks.arguments import check_dirpath, check_flag
from lightning_sparsity.callbacks.network import Inputs, bare, place
from lightning_sparsity.callbacks.report import describe, write
from lightning_sparsity.callbacks.trial import (
    everywhere,
    follow,
    naming_checkpoint,
    refuse_nan,
    try_cut,
    try_files,
)
from lightning_sparsity.surgery.flow import signature_of
from lightning_sparsity.surgery.running import each_tensor
from lightning_sparsity.surgery.storage import rebuild, to_record


class Cutting:
    """Cuts the network of a LightningModule once, and knows dense from slim checkpoints.

    Args:
        owner: The callback whose cut it is.
        amount: How much to cut: see `slimming.cut`. None: what is zero, and nothing else.
        gather: Whether layers may pick their inputs.
        compensate: What makes up for channels whose scale is not zero: see `slimming.cut`.
        dirpath: Where the folder `slim` goes; None: into the folder of the logger.
    """

    def __init__(
        self,
        owner: Callback,
        amount: float | surgery.Budget | None,
        *,
        gather: bool = True,
        compensate: slimming.Compensate = "shift",
        dirpath: str | None = None,
    ) -> None:
        known = get_args(slimming.Compensate)
        if compensate not in known:
            raise ValueError(f"compensate must be one of {', '.join(known)}, got {compensate!r}.")
        check_flag("gather", gather)
        check_dirpath(dirpath)
        self.owner = owner
        self.amount = amount
        self.gather = gather
        self.compensate = compensate
        self.dirpath = dirpath
        self.record: dict[str, Any] | None = None  # the plan that was carried out
        self.path = ""  # of the network in the module
        self.begun = False  # whether the training that goes on ends in a cut
        self._inputs = Inputs(several=compensate != "shift")
        self._example: Any = None
        self._dense: nn.Module | None = None  # the network in its shapes before the cut
        self._cut_here = False  # whether it has the weights that were cut, too

    def attach(self, pl_module: pl.LightningModule) -> None:
        """From now on checkpoints, dense or slim, find a network of their shape."""
        self.detach(pl_module)
        # A callback's own hook comes after the weights are loaded: too late for other shapes.
        pl_module.on_load_checkpoint = _OnLoad(self, pl_module)  # type: ignore[method-assign]

    def detach(self, pl_module: pl.LightningModule) -> None:
        """Leave nothing behind."""
        self.begun = False
        self._inputs.stop()
        pl_module.__dict__.pop("on_load_checkpoint", None)

    def is_over(self, pl_module: pl.LightningModule) -> bool:
        """Whether the module's network is the slim one already."""
        network = dict(pl_module.named_modules()).get(self.path)
        if self.record is None or network is None:
            return False
        return bool(signature_of(network) != self.record["signature"])

    def begin(self, pl_module: pl.LightningModule) -> None:
        """Look at the batches of a training that ends in a cut."""
        self.record = self._dense = self._example = None
        self.begun, self._cut_here = True, False
        self._inputs.watch(pl_module)

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the first batch: refuse a network that could not be cut when training is over."""
        if self._example is not None or not self.begun:
            return
        folder = self._folder(trainer)
        everywhere(trainer, lambda: self._try(trainer, pl_module, folder))

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, folder: Path | None) -> None:
        """Cut once for a trial, and write the files once."""
        self.path, inputs = self._inputs.found(pl_module)
        network = bare(pl_module.get_submodule(self.path))
        flow = follow(network, inputs[-1])
        small, plan = try_cut(flow, self.amount, gather=self.gather, compensate=self.compensate)
        name = type(self.owner).__name__
        if not plan.removes_anything():
            rank_zero_warn(f"{name} will cut nothing: no channel of {self.path!r} can go.\n{flow}")
        if folder is not None and trainer.is_global_zero:
            try_files(small, plan, folder)
        self._example = flow.example_inputs
        if others := self._inputs.beside(self.path):
            rank_zero_warn(
                f"{name} cuts {self.path!r} alone, since the step calls {', '.join(others)} beside "
                "it. To cut all of them as one network, define forward and call the module itself, "
                "`self(batch)`."
            )
        self._inputs.stop(but=None if self.compensate == "shift" else self.path)

    @torch.no_grad()
    def cut(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, settings: dict[str, str]
    ) -> None:
        """Let the slim network take the place of the network, and write its files.

        Args:
            trainer: The Trainer, at the end of its training.
            pl_module: What it trained.
            settings: What the report says of the callback's arguments.
        """
        network = bare(pl_module.get_submodule(self.path))
        example, batches = self._agreed(trainer, network)
        folder = self._folder(trainer)
        with naming_checkpoint(trainer, self.amount):
            refuse_nan(network)
            made = slimming.cut(
                network,
                example,
                self.amount,
                gather=self.gather,
                compensate=self.compensate,
                batches=batches,
            )
            figures = describe(network, made, example)
            if folder is not None:
                amount = "zeros" if self.amount is None else str(self.amount)
                given_as = {**settings, "amount": amount, "path": self.path, **figures}
                everywhere(trainer, lambda: rank_zero_only(write)(made, given_as, folder))
        self._carry_over(trainer, network, made)
        self._dense, self._cut_here = network, True
        place(pl_module, self.path, made.network)
        self.record = to_record(made.plan)
        self.begun = False
        rank_zero_info(_summary(type(self.owner).__name__, figures, folder))
        if not made.plan.removes_anything():
            what = "BatchNorm scale is within the amount"
            if self.amount is None:
                what = "row and no column of a weight is zero"
            rank_zero_warn(
                f"{type(self.owner).__name__} has cut nothing: no {what}. Raise lam, or train for "
                "longer."
            )

    def _agreed(self, trainer: pl.Trainer, network: nn.Module) -> tuple[Any, list[Any]]:
        """The first process's example and batches; the network gets its running means.

        Processes have seen other examples and have other running means.
        """
        calls = self._inputs.seen.get(self.path) or [self._example]
        batches = [] if self.compensate == "shift" else list(calls)
        self._inputs.stop()
        buffers = list(network.buffers())
        given = each_tensor((self._example, batches, buffers), Tensor.cpu)
        device = next(network.parameters()).device
        found = each_tensor(trainer.strategy.broadcast(given), lambda x: x.to(device))
        example, batches, first = found
        for buffer, x in zip(buffers, first, strict=True):
            buffer.copy_(x)
        return example, batches

    @contextmanager
    def uncut(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """Inside, the module holds the network before the cut, with the scales it was cut by."""
        with self._held(pl_module, self._before()):
            yield

    @contextmanager
    def recut(self, pl_module: pl.LightningModule, share: float) -> Iterator[float]:
        """Inside, the module holds the network cut by another share; gives what share it was."""
        network = self._before()
        device = next(network.parameters()).device
        example = each_tensor(self._example, lambda x: x.to(device))
        made = slimming.cut(network, example, share, gather=self.gather)
        dead = torch.cat([mask.double() for mask in made.plan.dead.values()])
        with self._held(pl_module, made.network):
            yield float(dead.mean())

    def _before(self) -> nn.Module:
        if self._dense is None or self.record is None or not self._cut_here:
            loaded = (
                "; it was slim in its checkpoint. Load one that was saved before the cut"
                if self.record is not None
                else ""
            )
            raise ValueError(
                f"{type(self.owner).__name__} has not cut this module's network{loaded}."
            )
        return self._dense

    @contextmanager
    def _held(self, pl_module: pl.LightningModule, network: nn.Module) -> Iterator[None]:
        slim = bare(pl_module.get_submodule(self.path))
        place(pl_module, self.path, network)
        try:
            yield
        finally:
            place(pl_module, self.path, slim)

    def _folder(self, trainer: pl.Trainer) -> Path | None:
        log_dir = trainer.log_dir  # asked for in every process: they agree on it together
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        return Path(self.dirpath or log_dir or trainer.default_root_dir) / "slim"

    def _carry_over(self, trainer: pl.Trainer, network: nn.Module, made: slimming.Slimmed) -> None:
        """Optimizers hold the slim weights, so that a checkpoint saved from now on resumes."""
        own = {id(x) for x in network.parameters()}
        for optimizer in trainer.optimizers:
            if not any(id(x) in own for group in optimizer.param_groups for x in group["params"]):
                continue  # it trains another part of the module
            try:
                surgery.transplant(optimizer, network, made.network, made.plan)
            except ValueError as error:
                rank_zero_warn(f"A checkpoint saved from now on cannot be resumed: {error}")

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to know: the plan, if its weights are slim."""
        record = None if self.record is None else json.dumps(self.record)
        return {"plan": record, "path": self.path}

    def prepare(self, pl_module: pl.LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Before a checkpoint's weights are loaded: give the module a network of their shapes."""
        own = checkpoint.get("callbacks", {}).get(self.owner.state_key)
        if own is None or "cut" not in own:
            return
        plan = own["cut"]["plan"]
        if _fits(pl_module, checkpoint["state_dict"]):
            if plan is not None:  # so that it is not cut again
                self.record, self.path = json.loads(plan), own["cut"]["path"]
            return
        self.path = own["cut"]["path"]
        network = pl_module.get_submodule(self.path) if self._dense is None else self._dense
        if plan is not None:
            self.record = json.loads(plan)
            self._dense = network
            slim = rebuild(bare(network), self.record, Path("checkpoint"))
            place(pl_module, self.path, slim)
        elif self._dense is not None:
            self.record, self._cut_here = None, False
            place(pl_module, self.path, network)
            rank_zero_info(
                f"{type(self.owner).__name__}: this checkpoint was saved before the cut, so the "
                "module holds the dense network again. The slim one is in the folder 'slim'."
            )


class _OnLoad:
    """The module's `on_load_checkpoint`, which is called in time, with ours before it."""

    def __init__(self, cutting: Cutting, pl_module: pl.LightningModule) -> None:
        self.cutting = cutting
        self.pl_module = pl_module

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        self.cutting.prepare(self.pl_module, checkpoint)
        type(self.pl_module).on_load_checkpoint(self.pl_module, checkpoint)


def _fits(module: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether a state has the shapes of a module."""
    shapes = signature_of(module)
    found = {name: list(x.shape) for name, x in state.items() if isinstance(x, Tensor)}
    return all(found.get(name) == shape for name, shape in shapes.items())


def _summary(name: str, figures: dict[str, Any], folder: Path | None) -> str:
    changes = ", ".join(
        f"{what} {figures[what]['dense']:,} to {figures[what]['slim']:,}"
        for what in ("channels", "parameters", "flops")
        if figures[what] is not None
    )
    where = "" if folder is None else f" Files: {folder}"
    return f"{name}: {changes}; relative difference {figures['proof']:.1e}.{where}"
