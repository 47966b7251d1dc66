"""The recipes that come with the package, as values of `--config`."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from lightning_sparsity.cli.flags import LIGHTNING

__all__ = ["recipes", "with_recipe"]

DEFAULT_RECIPE = "curves"
BEYOND_YAML = {"short": ["--trainer.callbacks.lam=1e-3"]}
"""What a recipe sets in a list that another one made: a file could only replace that list."""
STAND_INS = {
    ("short", "wrn16-8-sgl"): "short-wrn-sgl",
    ("short", "wrn28-10-sgl"): "short-wrn-sgl",
}
"""What a recipe means after another one whose list of callbacks it has to replace."""


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("lightning_sparsity") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def with_recipe(args: Sequence[str]) -> list[str]:
    """The arguments with names of recipes turned into files; without any, the default recipe.

    Raises:
        ValueError: If `--config` names neither a file nor a recipe.
    """
    found, given = list[str](), list[str]()
    rest = iter(args)
    for arg in rest:
        flag, equals, name = arg.partition("=")
        if flag in ("--config", "-c") and (equals or (name := next(rest, ""))):
            stand_ins = (STAND_INS[name, g] for g in given if (name, g) in STAND_INS)
            found += _configuration(next(stand_ins, name))
            given.append(name)
        else:
            found.append(arg)
    runs = found and found[0] in LIGHTNING
    if runs and not given and not {"-h", "--help"} & set(found):
        found[1:1] = _configuration(DEFAULT_RECIPE)
    return found


def _configuration(name: str) -> list[str]:
    """The arguments for a file or a recipe."""
    if Path(name).is_file():
        return ["--config", name]
    if name in recipes():
        return ["--config", str(recipes()[name]), *BEYOND_YAML.get(name, [])]
    raise ValueError(
        f"There is neither a file nor a recipe {name!r}. Recipes: {', '.join(recipes())}."
    )
