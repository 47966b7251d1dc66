"""Budgets as text: the same in a shell, in YAML and in Python."""

import pytest

from lightning_sparsity import amounts
from lightning_sparsity.surgery import Budget, Flops, Params, Share, Threshold


@pytest.mark.parametrize(
    "amount",
    [Flops(0.5), Params(0.3, round_to=8), Threshold(1e-3), Share(0.25, round_to=4)],
    ids=repr,
)
def test_what_a_budget_shows_is_read_back(amount: Budget) -> None:
    assert amounts.parse(repr(amount)) == amount


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0.5", 0.5),
        (" 1e-1 ", 0.1),
        ("Flops(0.5)", Flops(0.5)),
        ("Params(keep=0.3, round_to=8)", Params(0.3, round_to=8)),
        (" Threshold( 1e-3 ) ", Threshold(1e-3)),
        ("zeros", None),
        (Flops(0.5), Flops(0.5)),
        (0.3, 0.3),
        (None, None),
    ],
)
def test_texts_numbers_and_budgets_name_amounts(
    text: str | float | Budget | None, amount: float | Budget | None
) -> None:
    assert amounts.parse(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "half",
        "nan",
        "True",
        "Flop(0.5)",
        "Keep(0.5)",
        "Budget()",
        "Flops",
        "Flops()",
        "Flops(0.5, 8)",
        "Flops(share=0.5)",
        "Flops('0.5')",
        "Flops(0.5",
        "Flops(*[0.5])",
        "Flops(Flops(0.5))",
        "__import__('os').getcwd()",
    ],
)
def test_anything_else_is_an_error_that_lists_what_there_is(text: str) -> None:
    known = r"Flops\(number\), Params\(number\), Share\(number\), Threshold\(number\)"
    with pytest.raises(ValueError, match=rf"^amount needs a number .*'zeros', or one of {known}"):
        amounts.parse(text)


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ("1.5", r"in \(0, 1\), got amount=1.5"),
        (1, r"in \(0, 1\), got amount=1"),
        ("Flops(2)", "Flops needs 0 < keep < 1, got keep=2"),
        ("Threshold(-0.1)", "got at=-0.1"),
        ("Flops(0.5, round_to=0)", "round_to needs a whole number >= 1"),
    ],
)
def test_a_number_out_of_range_is_named(amount: str | float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        amounts.parse(amount)
