"""What each function does to channels: tables for the rules and for the constants."""

from collections.abc import Callable
from typing import Any

ALIASES = {
    spelling: name
    for name, spellings in {
        "add": "iadd radd",
        "sub": "isub subtract",
        "mul": "imul rmul multiply",
        "div": "itruediv truediv true_divide divide",
        "cat": "concat concatenate",
        "transpose": "swapaxes swapdims",
        "movedim": "moveaxis",
        "view": "view_as reshape_as reshape",
    }.items()
    for spelling in spellings.split()
}

SUMS = frozenset({"add", "sub", "maximum", "minimum"})
"""Functions of two activations whose channels then live and die together."""

PRODUCTS = frozenset({"mul", "div"})

MAPS = frozenset(
    [
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "sigmoid",
        "tanh",
        "softplus",
        "softsign",
        "logsigmoid",
        "tanhshrink",
        "hardshrink",
        "softshrink",
        "threshold",
        "exp",
        "log",
        "log1p",
        "expm1",
        "sqrt",
        "rsqrt",
        "square",
        "abs",
        "neg",
        "negative",
        "clamp",
        "clip",
        "clamp_min",
        "clamp_max",
        "erf",
        "sin",
        "cos",
        "reciprocal",
        "round",
        "floor",
        "ceil",
        "sign",
        "pow",
        "rsub",
        "rtruediv",
        "rdiv",
        "prelu",
    ]
)
"""Functions of one entry at a time: a constant becomes another constant."""

KEEPS = frozenset(
    [
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "max_pool1d_with_indices",
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
        "interpolate",
        "upsample",
        "upsample_nearest",
        "upsample_bilinear",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "feature_dropout",
        "alpha_dropout",
        "feature_alpha_dropout",
        "to",
        "float",
        "double",
        "half",
        "bfloat16",
        "type",
        "type_as",
        "cuda",
        "cpu",
        "data",
        "detach",
        "requires_grad",
        "alias",
    ]
)
"""Functions that keep a channel's constant as it is: pooling, resizing, dropout, casts."""

REDUCTIONS = frozenset({"mean", "amax", "amin", "sum"})

MOVES = frozenset(
    [
        "view",
        "permute",
        "transpose",
        "t",
        "T",
        "mT",
        "H",
        "mH",
        "adjoint",
        "movedim",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "cat",
        "stack",
        "expand",
        "expand_as",
        "broadcast_to",
        "contiguous",
        "clone",
        "flip",
        "repeat",
        "repeat_interleave",
        "tile",
    ]
)
"""Data movement that a narrower tensor goes through just as well."""

CUTTING_MOVES = frozenset(
    [
        "chunk",
        "split",
        "split_with_sizes",
        "tensor_split",
        "unsafe_chunk",
        "unsafe_split",
        "getitem",
        "select",
        "narrow",
        "roll",
        "index_select",
        "unbind",
    ]
)
"""Data movement that counts positions: harmless along other dimensions, not along the channels."""

MIXING_MOVES = frozenset(
    {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"}
)
"""Data movement that needs the full set of channels."""

LIKE = frozenset({"zeros_like", "ones_like", "full_like"})
"""Functions that make a constant in the shape of an activation: as wide as that is."""

LIKE_UNKNOWN = frozenset({"empty_like", "rand_like", "randn_like"})
"""The same with entries that nobody knows beforehand."""

NEW = frozenset({"new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"})
"""Functions that take nothing but a dtype and a device from an activation."""

TEMPLATES = frozenset({"type_as", "to"})
"""Functions that take nothing but a dtype and a device from their second tensor."""

SHAPED = frozenset({"view_as", "reshape_as", "expand_as"})
"""Functions whose result has the shape of their second tensor: as wide as that is."""

SIZES = frozenset({"size", "shape", "numel", "nelement", "len"})
"""Functions that make Python numbers of an activation's sizes."""

EXITS = frozenset({"item", "float", "int", "bool", "complex", "index", "tolist", "numpy", "array"})
"""Functions that take numbers out of tensors."""

CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}


def name_of(func: Callable[..., Any]) -> str:
    """One name for all spellings: `torch.add`, `Tensor.add_` and `+=` are "add"."""
    name = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):
        descriptor = getattr(getattr(func, "__self__", None), "__name__", name)
        return descriptor if name == "__get__" else f"{descriptor} assignment"
    name = name.strip("_")
    return ALIASES.get(name, name)
