"""How much to cut, as text: written in a shell or in YAML as it is in Python."""

import ast
import inspect
from collections.abc import Callable

from lightning_sparsity import surgery
from lightning_sparsity.surgery import Budget, Share
from lightning_sparsity.surgery.budget import meant

__all__ = ["parse"]

ZEROS = "zeros"


def parse(amount: str | float | Budget | None) -> float | Budget | None:
    """The amount that a text names; any other amount as it is.

    Args:
        amount: `"0.5"`, a fraction of all BatchNorm channels in (0, 1); a budget with its arguments
            as in Python, `"Flops(0.5)"`, `"Params(keep=0.3, round_to=8)"`, `"Threshold(1e-3)"`;
            `"zeros"`: what is exactly zero, and nothing else.

    Returns:
        What `slimming.cut` takes: a number, a budget, or None for zeros.

    Raises:
        ValueError: If the text is none of these, or a number is out of range.

    Example:
        >>> parse("Flops(0.5)"), parse("0.25"), parse("zeros")
        (Flops(keep=0.5), 0.25, None)
    """
    if isinstance(amount, str):
        amount = None if amount.strip() == ZEROS else _read(amount)
    if isinstance(amount, int | float):
        Share(amount)  # out of range, it raises the error that explains why
    return amount


def budgets() -> dict[str, Callable[..., Budget]]:
    """Every budget by its name."""
    found = {name: getattr(surgery, name) for name in surgery.__all__}
    return {
        name: kind
        for name, kind in found.items()
        if inspect.isclass(kind) and issubclass(kind, Budget) and not inspect.isabstract(kind)
    }


def _read(text: str) -> float | Budget:
    """A number, or a call of a budget with numbers: nothing else is read, and nothing is run."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call):
            return _number(node)
        kind = budgets()[node.func.id if isinstance(node.func, ast.Name) else ""]
        given = [_number(x) for x in node.args]
        named = {str(x.arg): _number(x.value) for x in node.keywords}
        inspect.signature(kind).bind(*given, **named)
    except (SyntaxError, KeyError, TypeError, ValueError) as error:
        known = ", ".join(f"{name}(number)" for name in budgets())
        raise ValueError(
            f"amount needs a number in (0, 1), {ZEROS!r}, or one of {known}, got {text!r}"
            + meant(text, "")
        ) from error
    return kind(*given, **named)


def _number(node: ast.expr) -> float:
    value = ast.literal_eval(node)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{ast.unparse(node)} is not a number")
    return value
