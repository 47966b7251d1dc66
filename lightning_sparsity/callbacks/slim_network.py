"""A slim network from a folder, in the place of the dense one."""

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_sparsity import surgery
from lightning_sparsity.callbacks.network import bare, place
from lightning_sparsity.surgery.flow import signature_of
from lightning_sparsity.surgery.storage import PLAN, read_record


class SlimNetwork(Callback):
    """Let a dense module hold a slim network from its folder: to fine-tune it, test it or resume.

    When a run is set up, before weights of checkpoints are loaded, the part of the module that the
    network was cut from is replaced. So checkpoints of the slim network find their shapes. A module
    that holds the slim network already keeps it, with its weights.

    Args:
        folder: The folder `slim` that `NetworkSlimming` or `surgery.save` has written.

    Raises:
        FileNotFoundError: When a run is set up, if a file is missing.
        ValueError: If a file is damaged, or nothing in the module is what was cut.

    Example:
        ```python
        from lightning.pytorch import Trainer
        from lightning_sparsity import SlimNetwork

        trainer = Trainer(callbacks=[SlimNetwork("runs/version_0/slim")])
        trainer.fit(module, data)  # fine-tunes; module was made dense, as before the cut
        ```
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the slim network in its place."""
        record = read_record(Path(self.folder) / PLAN)
        slim = {name: shape for name, (_, shape) in record["tensors"].items()}
        if any(signature_of(module) == slim for module in pl_module.modules()):
            return
        path = cut_from(pl_module, self.folder)
        dense = bare(pl_module.get_submodule(path))
        place(pl_module, path, surgery.load(dense, self.folder))


def cut_from(pl_module: pl.LightningModule, folder: str | Path) -> str:
    """The path of the part of a module that the slim network in a folder was cut from.

    Args:
        pl_module: The module as it was before the cut.
        folder: Where `surgery.save` wrote.

    Raises:
        FileNotFoundError: If there is no plan.
        ValueError: If the plan is damaged, or nothing in the module is what was cut.
    """
    signature = read_record(Path(folder) / PLAN)["signature"]
    for path, module in pl_module.named_modules():
        if signature_of(module) == signature:
            return str(path)
    raise ValueError(
        f"There is nothing in {type(pl_module).__name__} that the network in {folder} was cut "
        "from. Make the module as it was made for that run."
    )
