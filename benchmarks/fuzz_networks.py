"""Random networks from seeds: a program of a few lines, the class that it stands for, its weights.

A program is a list of nodes; each is a piece of code of `fuzz_ops` with gaps, the activations that
it reads, and a seed by which the gaps are filled. Sizes are read off the activations, so nodes can
be dropped and what is left still makes a network: that is how failures are made small.
"""

import math
import random
import re
import textwrap
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import fuzz_ops as ops
import torch
from torch import Tensor, nn

PRELUDE = """\
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

"""
WIDTHS = (4, 6, 8, 8, 12, 12, 16, 16, 24)
KINDS = {4: "map", 3: "sequence", 2: "vector"}
RANGE = (1e-2, 30.0)
LAST = "<last>"
"""Stands for the layer that a node made last."""


class RejectedError(Exception):
    """A program that makes no network."""


@dataclass(frozen=True)
class Node:
    """One step of a program."""

    name: str
    template: str
    inputs: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Program:
    """A network without its weights."""

    inputs: tuple[tuple[int, ...], ...]
    """Shapes without the batch; the activations are called `x0`, `x1` ..."""
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    structure: str = "single"
    nest: tuple[int, int] | None = None
    """Nodes that become a submodule."""
    single: bool = False
    """Whether the network is in float32 and may say so itself."""


class Gaps(dict[str, Any]):
    """What fills the gaps of one node."""

    def __init__(self, rng: random.Random, builder: "Builder", node: Node) -> None:
        super().__init__(x=node.inputs[0], y=node.inputs[-1], name=f"s{node.name[1:]}", last=LAST)
        self.rng, self.builder = rng, builder
        x, y = (builder.scope[self[key]] for key in "xy")
        self["c"], self["cy"] = ((v.size(-1 if v.dim() == 3 else 1)) for v in (x, y))
        if x.dim() == 4:
            self["h"], self["w"] = x.shape[2:]
        self["t"] = x.size(1)
        self["one"] = One(rng)

    def __missing__(self, key: str) -> Any:  # noqa: ANN401
        self[key] = getattr(self, f"_{key.rstrip('2')}")()
        return self[key]

    def _o(self) -> int:
        return self.rng.choice(WIDTHS)

    def _d(self) -> int:
        return self.rng.choice((2, 4, 6))

    def _s(self) -> int:
        if self["c"] < 2:
            raise RejectedError("too narrow")
        return self.rng.randrange(1, self["c"])

    def _even(self) -> int:
        if self["c"] % 2:
            raise RejectedError("odd")
        return self["c"]

    def _divisor(self, n: int) -> int:
        return self.rng.choice([d for d in range(1, n + 1) if n % d == 0 and (d > 1 or n < 2)])

    def _gc(self) -> int:
        return self._divisor(self["c"])

    def _g(self) -> int:
        return self._divisor(math.gcd(self["c"], self["o"])) if self.rng.random() < 0.5 else 1

    def _heads(self) -> int:
        return self.rng.choice([d for d in (1, 2, 3, 4) if self["c"] % d == 0])

    def _bool(self) -> "One":
        return One(self.rng, "True|False")

    def _act(self) -> str:
        return self.rng.choice(ops.ACTIVATIONS)

    def _activation(self, width: int) -> str:
        return self.rng.choice(ops.ACTIVATION_MODULES).format(width=width)

    def _ACT(self) -> str:  # noqa: N802
        return self._activation(self["c"])

    def _ACTo(self) -> str:  # noqa: N802
        return self._activation(self["o"])

    def _conv(self) -> str:
        rng, c, o = self.rng, self["c"], self["o"]
        kernel, stride = rng.choice((1, 1, 2, 3, 3, 3, (1, 3))), rng.choice((1, 1, 1, 2))
        options = self._options(kernel, c, o)
        return f"nn.Conv2d({c}, {o}, {kernel}, {stride}{options})"

    def _same(self) -> str:
        kernel, c = self.rng.choice((1, 3, 3)), self["c"]
        padding = f", padding={kernel // 2}" if kernel > 1 else ""
        return f"nn.Conv2d({c}, {c}, {kernel}{padding}{self._groups(c, c)}{self._plain()})"

    def _options(self, kernel: int | tuple[int, int], c: int, o: int) -> str:
        rng, text = self.rng, ""
        if kernel != 1 and rng.random() < 0.8:
            text += f", padding={rng.choice(('1', '1', '1', '(0, 1)', '2'))}"
            mode = rng.choice(("zeros", "zeros", "zeros", "reflect", "circular", "replicate"))
            text += f", padding_mode={mode!r}" if mode != "zeros" else ""
        text += ", dilation=2" if kernel == 3 and rng.random() < 0.1 else ""
        return text + self._groups(c, o) + self._plain()

    def _groups(self, c: int, o: int) -> str:
        common = math.gcd(c, o)
        if self.rng.random() < 0.7 or common == 1:
            return ""
        return f", groups={self._divisor(common)}"

    def _plain(self) -> str:
        return ", bias=False" if self.rng.random() < 0.5 else ""

    def _known(self, fits: Any) -> str:  # noqa: ANN401
        found = [f"self.{n}" for n, m in self.builder.module.named_children() if fits(m)]
        if not found:
            raise RejectedError("no such layer")
        return self.rng.choice(found)

    def _reuse(self) -> str:
        return self._known(lambda m: _reads(m) == self["c"])

    def _tied(self) -> str:
        return self._known(
            lambda m: (
                type(m) is nn.Conv2d
                and (m.in_channels, m.groups) == (self["c"], 1)
                and m.bias is not None
                and m.kernel_size[0] == m.kernel_size[1]
            )
        )


class One:
    """One of several spellings, drawn each time that it is written."""

    def __init__(self, rng: random.Random, choices: str | None = None) -> None:
        self.rng, self.choices = rng, choices

    def __format__(self, spec: str) -> str:
        return self.rng.choice((self.choices or spec).split("|"))


def _reads(module: nn.Module) -> int | None:
    """How many channels a layer or block reads."""
    if isinstance(module, nn.Sequential) and len(module):
        return _reads(module[0])
    if isinstance(module, nn.Conv2d):
        return module.in_channels
    return module.num_features if isinstance(module, nn.BatchNorm2d) else None


class Builder:
    """Writes a program as code, and runs each line of it to know all sizes."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.module = nn.Module()
        self.scope: dict[str, Any] = {"self": self.module}
        exec(PRELUDE, self.scope)
        dtype = torch.float32 if program.single else torch.float64
        for i, shape in enumerate(program.inputs):
            self.scope[f"x{i}"] = torch.randn(2, *shape, dtype=dtype)
        self.code: list[tuple[list[str], list[str]]] = []
        """Per node its lines of the constructor and of forward."""

    def add(self, node: Node) -> None:
        """Write a node.

        Raises:
            RejectedError: If it cannot run.
        """
        if not all(name in self.scope for name in node.inputs):
            raise RejectedError("an input is missing")
        try:
            rng = random.Random(node.seed)
            filled = node.template.format_map(Gaps(rng, self, node))
            init, body = self._split(filled, node.name)
            with torch.no_grad():
                for line in init:
                    exec(line, self.scope)
                self.module.to(self.scope["x0"].dtype).eval()
                exec("\n".join(body), self.scope)
        except RejectedError:
            raise
        except Exception as error:
            raise RejectedError(f"{node}: {error}") from error
        result = self.scope[node.name]
        if not isinstance(result, Tensor) or result.dim() not in KINDS or result.size(0) != 2:
            raise RejectedError("no activation")
        self.code.append((init, body))

    def _split(self, filled: str, name: str) -> tuple[list[str], list[str]]:
        lines = filled.split("\n")
        init = [line.removeprefix("init ") for line in lines if line.startswith("init ")]
        body = [line for line in lines if not line.startswith("init ")]
        if "; " in body[-1]:
            raise RejectedError("two statements")
        body[-1] = f"{name} = {body[-1]}"
        made: list[str] = []

        def swap(found: re.Match[str]) -> str:
            made_by = found.group(1)
            if made_by is None:
                return made[-1]
            kind = re.match(r"(?:nn\.)?(?:utils\.\w+\.)?(\w+)", made_by)
            assert kind is not None
            attribute = f"{kind[1].lower()}{name[1:]}{'abcdefgh'[len(made)] if made else ''}"
            made.append(f"self.{attribute}")
            if made_by.startswith("buffer "):
                what = made_by.removeprefix("buffer ")
                init.append(f"self.register_buffer({attribute!r}, {what})")
            else:
                init.append(f"self.{attribute} = {made_by}")
            return made[-1]

        body = re.sub(rf"<<(.+?)>>|{LAST}", swap, "\n".join(body)).split("\n")
        return init, body

    def source(self) -> str:
        """The class of the network."""
        program = self.program
        first, last = program.nest or (0, 0)
        inits, lines, parts = [], [], ""
        for i, (init, body) in enumerate(self.code):
            if not first <= i < last:
                inits, lines = inits + init, lines + body
            elif i == first:
                parts, line = self._part(first, last)
                inits, lines = [*inits, "self.part = Part()"], [*lines, line]
        arguments = ", ".join(f"x{i}" for i in range(len(program.inputs)))
        end = _end(program, self.scope)
        extra = [line.removeprefix("init ") for line in end if line.startswith("init ")]
        end = [line for line in end if not line.startswith("init ")]
        return PRELUDE + parts + _class("Net", arguments, inits + extra, lines + end)

    def _part(self, first: int, last: int) -> tuple[str, str]:
        """The submodule of some nodes, and the line that calls it."""
        chosen = self.code[first:last]
        inside = {node.name for node in self.program.nodes[first:last]}
        inits = [line for init, _ in chosen for line in init]
        lines = [line for _, body in chosen for line in body]
        outside = [
            line
            for i, code in enumerate(self.code)
            if not first <= i < last
            for some in code
            for line in some
        ]
        if _attributes(inits) & _attributes(outside) or _attributes(lines) - _attributes(inits):
            raise RejectedError("the submodule shares layers with the rest")
        reads = [n for node in self.program.nodes[first:last] for n in node.inputs]
        ins = sorted(set(reads) - inside)
        read_later = {n for node in self.program.nodes[last:] for n in node.inputs}
        outs = sorted(inside & (read_later | set(self.program.outputs)))
        if not outs:
            raise RejectedError("the submodule makes nothing")
        results = ", ".join(outs)
        text = _class("Part", ", ".join(ins), inits, [*lines, f"return {results}"])
        return text + "\n", f"{results} = self.part({', '.join(ins)})"


def _attributes(lines: Sequence[str]) -> set[str]:
    return {name for line in lines for name in re.findall(r"self\.(\w+)", line)} - {
        "register_buffer",
        "training",
    }


def _class(name: str, arguments: str, inits: Sequence[str], lines: Sequence[str]) -> str:
    head = [f"class {name}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    body = textwrap.indent("\n".join(lines), " " * 8)
    constructor = [f"        {line}" for line in inits]
    text = [*head, *constructor, "", f"    def forward(self, {arguments}):", body, ""]
    return "\n".join(text)


def _end(program: Program, scope: dict[str, Any]) -> list[str]:
    """How the network returns its results."""
    names = list(program.outputs)
    first, rest = names[0], ", ".join(names[1:])
    if program.structure == "dict":
        return [f'return {{"out": {first}, "more": [{rest}], "size": x0.shape[-1]}}']
    if program.structure == "nested":
        return [f"return {first}, ({{0: [{rest}]}}, None)"]
    if program.structure == "list":
        return [f"return [{', '.join(names)}]"]
    if program.structure == "training":
        x = scope[first]
        pooled = f"{first}.flatten(2).mean(2)" if x.dim() == 4 else first
        width = x.size(1 if x.dim() == 4 else -1)
        return [
            f"init self.aux = nn.Linear({width}, 3)",
            "if self.training:",
            f"    return {', '.join(names)}, self.aux({pooled})",
            f"return {', '.join(names)}",
        ]
    return [f"return {', '.join(names)}"]


def source_of(program: Program) -> str:
    """The code of a program's network.

    Raises:
        RejectedError: If it makes none.
    """
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        builder = Builder(program)
        for node in program.nodes:
            builder.add(node)
        if not all(name in builder.scope for name in program.outputs):
            raise RejectedError("an output is missing")
        return builder.source()


def generate(seed: int) -> Program:
    """A random program."""
    rng = random.Random(seed)
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return _Writer(rng).write()


class _Writer:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        sizes = (8, 8, 10, 12, 16)
        image = (3, rng.choice(sizes), rng.choice(sizes))
        inputs: list[tuple[int, ...]] = [image]
        if rng.random() < 0.2:
            inputs.append(rng.choice([image, (1, *image[1:]), (5,)]))
        self.program = Program(tuple(inputs), (), (), single=rng.random() < 0.1)
        self.builder = Builder(self.program)
        self.nodes: list[Node] = []
        self.names: list[str] = []
        """Activations to go on from."""
        self.used: set[str] = set()

    def write(self) -> Program:
        rng = self.rng
        conv = "<<nn.Conv2d({c}, {o}, 3, {one:1|2}, 1, bias={bool})>>({x})"
        stem = f"{{act}}(<<nn.BatchNorm2d({{o}})>>({conv}))"
        while not self._try(rng.choice([stem, *ops.LAYERS[:5]]), ["x0"]):
            pass
        for name in list(self.builder.scope):
            if name == "x1":
                self.names.append("x1")
        quirks = rng.choice((0, 0, 1, 1, 2))
        for _ in range(rng.randint(3, 11)):
            self._grow()
        for _ in range(quirks):
            self._quirk()
            self._grow()
        self._head()
        nodes = len(self.nodes)
        nest = None
        if nodes > 3 and rng.random() < 0.3:
            first = rng.randrange(0, nodes - 2)
            nest = (first, rng.randint(first + 1, nodes - 1))
        program = replace(self.program, nodes=tuple(self.nodes), nest=nest)
        if nest is not None:
            try:
                source_of(program)
            except RejectedError:
                program = replace(program, nest=None)
        return program

    def _grow(self) -> None:
        """One or two ordinary steps."""
        for _ in range(20):
            x = self._pick()
            if self._try(self._ordinary(x), self._with_partner(x)):
                return

    def _ordinary(self, x: str) -> str:
        rng, kind = self.rng, self._kind(x)
        if kind == "map":
            groups = (ops.LAYERS, ops.BLOCKS, ops.ENTRYWISE, ops.NORMS, ops.POSITIONS, ops.PAIRS)
            more = (ops.JOINS, ops.CHANNELS, ops.ATTENTION, ops.WEIGHTS, ops.TO_SEQUENCE)
            weights = (8, 5, 2, 2, 2, 3, 2, 1.2, 0.6, 0.6, 0.3, 0.6)
            table = (*groups, *more, ops.TO_VECTOR["map"])
            return rng.choice(rng.choices(table, weights)[0])
        if kind == "sequence":
            return rng.choice(rng.choice((ops.SEQUENCE, ops.SEQUENCE, ops.TO_VECTOR["sequence"])))
        return rng.choice(ops.VECTOR + ops.TO_MAP["vector"])

    def _quirk(self) -> None:
        for _ in range(20):
            x = self._pick()
            single = ops.SINGLE * 10 if self.program.single else ()
            table = self.rng.choice((ops.QUIRKS + single, ops.QUIRKS, ops.CHANNELS, ops.WEIGHTS))
            if self._kind(x) == "map" and self._try(self.rng.choice(table), self._with_partner(x)):
                return

    def _pick(self) -> str:
        recent = self.names[-3:] if self.rng.random() < 0.8 else self.names
        return self.rng.choice(recent)

    def _kind(self, name: str) -> str:
        return KINDS[self.builder.scope[name].dim()]

    def _with_partner(self, x: str) -> list[str]:
        """The activation and another of the same shape, or at least the same positions."""
        shape = self.builder.scope[x].shape
        shapes = {name: self.builder.scope[name].shape for name in self.names if name != x}
        alike = [name for name, other in shapes.items() if other == shape]
        near = [n for n, s in shapes.items() if len(s) == len(shape) and s[2:] == shape[2:]]
        return [x, self.rng.choice(alike if alike and self.rng.random() < 0.7 else near or [x])]

    def _try(self, template: str, inputs: list[str]) -> bool:
        if "{y" not in template:
            inputs = inputs[:1]
        elif len(set(inputs)) < 2:
            return False
        node = Node(f"v{len(self.nodes) + 1}", template, tuple(inputs), self.rng.randrange(1 << 30))
        before = set(dict(self.builder.module.named_children()))
        try:
            self.builder.add(node)
            if not self._fine(self.builder.scope[node.name]):
                raise RejectedError("out of range")
        except RejectedError:
            self.builder.code = self.builder.code[: len(self.nodes)]
            self.builder.scope.pop(node.name, None)
            for name in set(dict(self.builder.module.named_children())) - before:
                delattr(self.builder.module, name)
            return False
        self.nodes.append(node)
        self.names.append(node.name)
        self.used |= set(inputs)
        return True

    def _fine(self, x: Tensor) -> bool:
        small = max(x.shape[2:], default=1) <= 64 and x.size(1) <= (300 if x.dim() == 3 else 48)
        alive = (
            bool(x.isfinite().all()) and x.numel() > 2 and x.dtype == self.builder.scope["x0"].dtype
        )
        return small and alive and RANGE[0] <= float(x.std()) and float(x.abs().max()) <= RANGE[1]

    def _head(self) -> None:
        """Results: the last activation and some that nobody has read."""
        rng = self.rng
        own = [name for name in self.names if name.startswith("v")]
        unread = [name for name in own[:-1] if name not in self.used]
        chosen = [own[-1], *[name for name in unread if rng.random() < 0.7]][:4]
        if len(chosen) == 1 and rng.random() < 0.3:
            chosen.append(rng.choice(own))
        outputs = []
        for name in chosen:
            count = len(self.nodes)
            while not self._try(rng.choice(ops.HEADS[self._kind(name)]), [name]):
                pass
            outputs.append(self.nodes[count].name)
        structures = ["single", "dict", "nested", "list", "training"]
        structure = rng.choice(structures if len(outputs) > 1 else ["single", "single", "training"])
        self.program = replace(self.program, outputs=tuple(outputs), structure=structure)


def network(source: str) -> nn.Module:
    """An instance of the class that the code makes."""
    namespace: dict[str, Any] = {"__name__": "network"}
    exec(compile(source, "<network>", "exec"), namespace)
    model: nn.Module = namespace["Net"]()
    return model


def inputs_of(program: Program, batch: int, seed: int, grow: int = 0) -> tuple[Tensor, ...]:
    """Random inputs, perhaps with larger images."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(s[0], *[n + grow for n in s[1:]]) for s in program.inputs]
    dtype = torch.float32 if program.single else torch.float64
    return tuple(
        torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in shapes
    )


@torch.no_grad()
def prepare(model: nn.Module, inputs: tuple[Tensor, ...], seed: int, *, zeros: bool) -> None:
    """Random weights and statistics that keep activations near one; some rows and columns zero."""
    with torch.random.fork_rng([]):
        done: set[int] = set()
        for name, module in model.named_modules():
            torch.manual_seed(seed_of(seed, name))  # whatever other modules there are
            _draw(module, done, zeros=zeros)
        hooks = [
            module.register_forward_pre_hook(partial(_calibrate, seed_of(seed, name)))
            for name, module in model.named_modules()
            if isinstance(getattr(module, "running_mean", None), Tensor)
        ]
        model.eval()
        model(*[x.clone() for x in inputs])
        for hook in hooks:
            hook.remove()


def _draw(module: nn.Module, done: set[int], *, zeros: bool) -> None:
    own = [(n, x) for n, x in module.named_parameters(recurse=False) if id(x) not in done]
    done |= {id(x) for _, x in own}
    layer = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    norm = hasattr(module, "num_features") or type(module).__name__ == "FrozenBatchNorm2d"
    if type(module).__name__ == "FrozenBatchNorm2d":
        own = [(name, x) for name, x in module.named_buffers() if not name.startswith("running")]
    for name, x in own:
        if layer and name == "weight":
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            fan = x.numel() // x.size(0) if not transposed else x[:, 0].numel()
            x.normal_(0, 1.2 / math.sqrt(fan))
        elif norm and name == "weight":
            x.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(x) < 0.2, -1.0, 1.0))
            if torch.rand(()) < 0.3:
                x.mul_(torch.rand_like(x) > 0.3)
        elif (norm or layer) and name == "bias":
            x.normal_(0, 0.4)
            if torch.rand(()) < 0.1:
                x.zero_()
    if layer and zeros and torch.rand(()) < 0.4:
        weight: Any = module.weight
        for dim in (0, 1):
            if weight.size(dim) > 1:
                chosen = (torch.rand(weight.size(dim)) < 0.3 * torch.rand(())).nonzero().flatten()
                weight.index_fill_(dim, chosen, 0)


def seed_of(seed: int, name: str) -> int:
    """A seed for one module."""
    return zlib.crc32(f"{seed} {name.removeprefix('part.')}".encode())


def _calibrate(seed: int, module: Any, args: tuple[Any, ...]) -> None:  # noqa: ANN401
    """Statistics near those of what arrives."""
    torch.manual_seed(seed)
    x = args[0]
    x = x.flatten(0, -2) if x.dim() == 2 else x.transpose(0, 1).flatten(1).t()
    std = x.std(0, unbiased=False)
    module.running_mean.copy_(x.mean(0) + 0.3 * std * torch.randn_like(std))
    module.running_var.copy_(std.square() * (0.5 + torch.rand_like(std)) + 0.05)
