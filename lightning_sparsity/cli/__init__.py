"""The command `lightning-sparsity`: one file per command, loaded when it is run."""

from lightning_sparsity.cli.main import main
from lightning_sparsity.cli.recipes import recipes, with_recipe

__all__ = ["main", "recipes", "with_recipe"]
