"""Penalties of unit strength: a value, a subgradient, an exact proximal operator. Only torch."""

from lightning_sparsity.penalties import ball, elementwise, folded, group, sparse_group
from lightning_sparsity.penalties.ball import *  # noqa: F403 - one list per file, kept there
from lightning_sparsity.penalties.base import Penalty
from lightning_sparsity.penalties.elementwise import *  # noqa: F403
from lightning_sparsity.penalties.folded import *  # noqa: F403
from lightning_sparsity.penalties.group import *  # noqa: F403
from lightning_sparsity.penalties.sparse_group import *  # noqa: F403

_FILES = (ball, elementwise, folded, group, sparse_group)
__all__ = ["Penalty", *(name for file in _FILES for name in file.__all__)]
