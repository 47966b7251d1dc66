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
        for path, module in pl_module.named_modules():
            signature = signature_of(module)
            if signature == slim:
                return
            if signature == record["signature"]:
                place(pl_module, path, surgery.load(bare(module), self.folder))
                return
        raise ValueError(
            f"SlimNetwork found nothing in {type(pl_module).__name__} that the network in "
            f"{self.folder} was cut from. Make the module as it was made for that run."
        )
