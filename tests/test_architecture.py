"""The house rules, read off the source: imports point down, and everything stays small."""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_sparsity

ROOT = Path(lightning_sparsity.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# The floors from the bottom up, each part of the package on one of them.
MATHS, MODULES, LIGHTNING, ROOF = range(4)
FLOORS = {
    "penalties": MATHS,
    "groups": MATHS,
    "splitting": MATHS,
    "regularization": MATHS,
    "schedules": MATHS,
    "variance": MATHS,
    "waiting": MATHS,
    "selection": MODULES,
    "sparse_file": MODULES,
    "surgery": MODULES,
    "slimming": MODULES,
    "amounts": MODULES,
    "metrics": MODULES,
    "models": MODULES,
    "data": LIGHTNING,
    "callbacks": LIGHTNING,
    "classifier": LIGHTNING,
    "report": ROOF,
    "recipes": ROOF,
    "cli": ROOF,
    "__main__": ROOF,
}
# Packages from outside that a floor, or one of its parts, may use besides those of floors below.
OUTSIDE = {
    MATHS: {"torch"},
    MODULES: {"safetensors"},
    LIGHTNING: {"lightning", "torchmetrics", "torchvision", "numpy", "matplotlib", "PIL"},
    ROOF: {"jsonargparse", "rich", "fvcore", "yaml", "jinja2", "markupsafe"},
}
PARTS = {
    "metrics": {"torchmetrics"},
    "metrics/flops.py": {"fvcore"},
    "surgery/export.py": {"onnxruntime"},
    "callbacks/loggers.py": {"wandb"},
}
EVERYWHERE = {*sys.stdlib_module_names, "typing_extensions"}


def imports(tree: ast.AST) -> Iterator[str]:
    """Everything that is imported anywhere, except for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{a.name}" for a in node.names)
        else:
            yield from imports(node)


def part_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def wrong_imports(path: str, source: str) -> list[str]:
    """Imports of the file at `path`, relative to the package, that do not point down."""
    part = part_of(path)
    floor = FLOORS[part]
    allowed = EVERYWHERE.union(*(OUTSIDE[i] for i in range(floor + 1)))
    allowed |= PARTS.get(part, set()) | PARTS.get(path, set())
    wrong = []
    for name in imports(ast.parse(source)):
        top, _, rest = name.partition(".")
        if top == "lightning_sparsity":
            fine = FLOORS.get(rest.split(".")[0], ROOF) <= floor
        else:
            fine = top in allowed
        if not fine:
            wrong.append(f"{path} imports {name}")
    return wrong


FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


def lines_of_code(source: str) -> set[int]:
    """Numbers of the lines that hold more than space, comments and docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return lines


def long_functions(path: str, source: str, limit: int = 40) -> list[str]:
    code, found = lines_of_code(source), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTIONS):
            count = len(code & set(range(node.lineno, node.end_lineno + 1)))
            found += [f"{path}: {node.name} has {count} lines of code"] * (count > limit)
    return found


def arguments(cls: ast.ClassDef) -> int:
    """What a constructor takes: the arguments of `__init__`, or the fields of a dataclass."""
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            a = node.args
            return len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs) - 1
    if not any("dataclass" in ast.unparse(decorator) for decorator in cls.decorator_list):
        return 0
    fields = [node for node in cls.body if isinstance(node, ast.AnnAssign)]
    return sum("ClassVar" not in ast.unparse(field.annotation) for field in fields)


def large_constructors(path: str, source: str, limit: int = 8) -> list[str]:
    return [
        f"{path}: {node.name} takes {arguments(node)} arguments"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef) and arguments(node) > limit
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_keeps_the_house_rules(file: Path) -> None:
    path, source = file.relative_to(ROOT).as_posix(), file.read_text()
    assert len(source.splitlines()) <= 300
    assert file.stem not in {"utils", "util", "helpers", "common", "misc"}
    assert not long_functions(path, source)
    assert not large_constructors(path, source)
    if path != "__init__.py":
        assert part_of(path) in FLOORS, f"{path} has no floor yet: give it one above"
        assert not wrong_imports(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("penalties/new.py", "import numpy"),
        ("penalties/new.py", "from lightning_sparsity.selection import Select"),
        ("splitting.py", "def f():\n    import lightning.pytorch as pl"),
        ("selection.py", "import torchmetrics"),
        ("surgery/slim.py", "from lightning_sparsity.callbacks import SparsityMonitor"),
        ("metrics/sparsity.py", "from fvcore.nn import flop_count"),
        ("models/new.py", "from lightning.pytorch import LightningModule"),
        ("callbacks/new.py", "from lightning_sparsity.cli import main"),
        ("callbacks/new.py", "from lightning_sparsity import cli"),
        ("penalties/new.py", "from ..callbacks import SparsityMonitor"),
        ("callbacks/new.py", "try:\n    import rich\nexcept ImportError:\n    pass"),
    ],
)
def test_an_import_that_points_up_is_found(path: str, source: str) -> None:
    assert len(wrong_imports(path, source)) == 1


def test_an_import_for_type_checkers_is_no_import() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lightning"
    assert not wrong_imports("penalties/new.py", source)


def function(lines: int) -> str:
    body = "\n\n    # why\n".join(f"    x = (\n        {i}\n    )" for i in range(lines // 3))
    return f'class A:\n  def f(self):\n    """Doc.\n\n    More.\n    """\n{body}\n    return x'


def test_only_lines_of_code_are_counted() -> None:
    assert not long_functions("a.py", function(36))
    (found,) = long_functions("a.py", function(39))
    assert found == "a.py: f has 41 lines of code"


def test_a_large_constructor_is_found() -> None:
    names = [f"a{i}" for i in range(9)]
    explicit = (
        f"class A:\n  def __init__(self, {', '.join(names[:5])}, *, {', '.join(names[5:])}): ..."
    )
    fields = "\n".join(f"  {name}: int = 0" for name in names)
    data = f"@dataclass(frozen=True)\nclass A:\n  c: ClassVar[int] = 0\n{fields}"
    for source in (explicit, data):
        assert large_constructors("a.py", source) == ["a.py: A takes 9 arguments"]
        fewer = source.replace(", a8", "").replace("  a8: int = 0", "")
        assert not large_constructors("a.py", fewer)
    assert not large_constructors("a.py", f"class A:\n{fields}")


def test_the_mathematics_loads_torch_alone() -> None:
    parts = [part_of(file.relative_to(ROOT).as_posix()) for file in FILES]
    names = sorted({f"lightning_sparsity.{p}" for p in parts if FLOORS.get(p) == MATHS})
    assert "lightning_sparsity.penalties" in names
    code = (
        f"import sys, {', '.join(names)}\n"
        "found = {'lightning', 'pytorch_lightning', 'torchmetrics', 'torchvision', 'fvcore'}\n"
        "assert not found & set(sys.modules), found & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
