"""What random networks are made of: lines of code with gaps, by the kind of tensor that they read.

The gaps are filled when a network is built (see `fuzz_networks`): `{x}` is an activation and `{y}`
another; `{c}`, `{h}`, `{w}` are the sizes of `{x}`, `{o}` is a new width, `{g}` divides `{c}` and
`{o}`, and `{one:a|b}` is one of several spellings. What stands in `<<...>>` is made in the
constructor. The last line is the result.
"""

ACTIVATIONS = (
    *("F.relu", "F.relu", "F.relu6", "F.leaky_relu", "F.elu", "F.silu", "F.gelu", "F.hardswish"),
    *("torch.sigmoid", "torch.tanh", "F.softplus", "torch.cos", "torch.sin", "F.mish", "torch.abs"),
    *("F.hardsigmoid", "F.selu", "F.celu", "F.softsign", "F.logsigmoid", "F.hardtanh", "torch.erf"),
)
ACTIVATION_MODULES = (
    *("nn.ReLU()", "nn.ReLU(inplace=True)", "nn.SiLU()", "nn.SiLU(inplace=True)", "nn.GELU()"),
    *("nn.Hardswish()", "nn.Sigmoid()", "nn.Softplus()", "nn.PReLU()", "nn.PReLU({width})"),
    *(
        "nn.LeakyReLU(0.1)",
        "nn.Tanh()",
        "nn.ELU(inplace=True)",
        "nn.Hardsigmoid()",
        "nn.Identity()",
    ),
)

LAYERS = (
    "<<{conv}>>({x})",
    "<<nn.Sequential({conv}, nn.BatchNorm2d({o}))>>({x})",
    "<<nn.Sequential({conv}, nn.BatchNorm2d({o}), {ACTo})>>({x})",
    "<<nn.Sequential({conv}, nn.BatchNorm2d({o}), {ACTo})>>({x})",
    "{act}(<<nn.BatchNorm2d({o})>>(<<{conv}>>({x})))",
    "{act}(<<nn.BatchNorm2d({o})>>(<<{conv}>>({x})))",
    "<<{conv}>>({act}(<<nn.BatchNorm2d({c})>>({x})))",
    "<<nn.BatchNorm2d({o})>>({act}(<<{conv}>>({x})))",
    "<<nn.Sequential(nn.Conv2d({c}, {c}, 3, padding=1, groups={c}, bias={bool}), "
    "nn.BatchNorm2d({c}), {ACT}, nn.Conv2d({c}, {o}, 1), nn.BatchNorm2d({o}))>>({x})",
    "<<nn.Sequential(nn.Conv2d({c}, 2 * {c}, 3, padding=1, groups={c}, bias={bool}), "
    "nn.BatchNorm2d(2 * {c}), {one:nn.ReLU()|nn.SiLU()})>>({x})",
    "<<nn.Sequential(nn.ConvTranspose2d({c}, {o}, {one:2|3}, stride={one:1|2}, groups={g}, "
    "bias={bool}), nn.BatchNorm2d({o}), {ACTo})>>({x})",
    "<<nn.ConvTranspose2d({c}, {o}, 3, stride=2, padding=1, output_padding=1)>>({x})",
    "<<nn.ConvTranspose2d({c}, {c}, 3, padding=1, groups={c}, bias={bool})>>({x})",
)

BLOCKS = (
    "{act}({x} + <<nn.Sequential({same}, nn.BatchNorm2d({c}), {ACT}, {same2}, "
    "nn.BatchNorm2d({c}))>>({x}))",
    "{x} {one:+|-|*} <<nn.Sequential(nn.Conv2d({c}, {o}, 1, bias=False), nn.BatchNorm2d({o}), "
    "{ACTo}, nn.Conv2d({o}, {c}, 3, padding=1, groups={g}), nn.BatchNorm2d({c}))>>({x})",
    "{x} + <<{same}>>({act}(<<nn.BatchNorm2d({c})>>({x})))",
    "r = <<nn.Conv2d({c}, {o}, 3, stride=2, padding=1, bias=False)>>({x})\n"
    "s = <<nn.Conv2d({c}, {o}, 1, stride=2, bias={bool})>>({x})\n"
    "{act}(<<nn.BatchNorm2d({o})>>(r) + <<nn.BatchNorm2d({o})>>(s))",
    "r = <<nn.Sequential(nn.Conv2d({c}, {c} + 4, 3, 2, 1), nn.BatchNorm2d({c} + 4))>>({x})\n"
    "F.relu(r + F.pad({x}[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))",
    "d = <<nn.Sequential(nn.BatchNorm2d({c}), nn.ReLU(), nn.Conv2d({c}, 4, 3, padding=1))>>({x})\n"
    "d = torch.cat([{x}, d], 1)\n"
    "e = <<nn.Conv2d({c} + 4, 4, 3, padding=1)>>({act}(<<nn.BatchNorm2d({c} + 4)>>(d)))\n"
    "torch.cat([d, e], 1)",
    "f = [{x}]\n"
    "for m in <<nn.ModuleList([nn.Conv2d({c} + 4 * i, 4, 3, padding=1) for i in range(2)])>>:\n"
    "    f.append({act}(m(torch.cat(f, 1))))\n"
    "torch.cat(f, 1)",
    "s = F.adaptive_avg_pool2d({x}, 1)\n"
    "s = {act}(<<nn.Conv2d({c}, {d}, 1)>>(s))\n"
    "{x} * <<nn.Conv2d({d}, {c}, 1)>>(s).sigmoid()",
    "s = {x}.mean((2, 3))\n"
    "s = torch.sigmoid(<<nn.Linear({d}, {c})>>({act}(<<nn.Linear({c}, {d})>>(s))))\n"
    "{x} * {one:s[:, :, None, None]|s.view({x}.size(0), -1, 1, 1)|s.unsqueeze(-1).unsqueeze(-1)"
    "|s.view({x}.size(0), {x}.size(1), 1, 1)|s.view(*s.shape, 1, 1).expand_as({x})}",
    "{x} * torch.sigmoid(<<nn.Conv2d({c}, 1, 3, padding=1)>>({x}))",
    "s = torch.cat([{x}.mean(1, keepdim=True), {x}.amax(1, keepdim=True)], 1)\n"
    "{x} * torch.sigmoid(<<nn.Conv2d(2, 1, 3, padding=1)>>(s))",
    "a, b = <<nn.Sequential(nn.Conv2d({c}, 2 * {o}, 1), nn.BatchNorm2d(2 * {o}))>>({x})"
    ".{one:chunk(2, 1)|split({o}, 1)|tensor_split(2, dim=1)}\n"
    "a * {act}(b)",
    "F.glu(<<nn.Conv2d({c}, 2 * {o}, 3, padding=1)>>({x}), 1)",
    "a, b = {x}.chunk(2, 1)\n"
    "b = <<nn.Sequential(nn.Conv2d({even} // 2, {even} // 2, 3, padding=1), "
    "nn.BatchNorm2d({even} // 2), {one:nn.ReLU()|nn.SiLU()})>>(b)\n"
    "t = torch.cat([a, b], 1)\n"
    "n, c, h, w = t.size()\n"
    "t.view(n, 2, c // 2, h, w).transpose(1, 2).{one:reshape|contiguous().view}"
    "(n, {one:-1|c}, h, w)",
    "a, b = torch.split(<<nn.Sequential({conv}, nn.BatchNorm2d({o}))>>({x}), "
    "[{o} - 2, 2], 1)\n"
    "torch.cat([{act}(b), a], 1)",
    "torch.cat([<<nn.Sequential(nn.Conv2d({c}, {o}, 1), nn.BatchNorm2d({o}), nn.ReLU())>>({x}), "
    "<<nn.Sequential(nn.Conv2d({c}, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU())>>({x}), "
    "<<nn.Conv2d({c}, 3, 1)>>(F.max_pool2d({x}, 3, 1, 1))], 1)",
    "s = torch.stack([<<{same}>>({x}), <<{same2}>>({x})], 1)\n"
    "a = <<nn.Linear({c}, 2 * {c})>>(s.sum(1).mean((2, 3)))\n"
    "a = a.view({x}.size(0), 2, -1, 1, 1).softmax(1)\n"
    "(s * a).sum(1)",
    "p = F.adaptive_avg_pool2d({x}, 1)\n"
    "p = {act}(<<nn.Sequential(nn.Conv2d({c}, 4, 1), nn.BatchNorm2d(4))>>(p))\n"
    "torch.cat([{x}, {one:p.expand(-1, -1, *{x}.shape[2:])"
    "|F.interpolate(p, {x}.shape[2:], mode='nearest')"
    "|p.expand({x}.size(0), 4, {x}.size(2), {x}.size(3))}], 1)",
    "g = <<nn.Linear({c}, 2 * {c})>>({x}.mean((2, 3)))\n"
    "a, b = g[:, :, None, None].chunk(2, 1)\n"
    "{x} * (1 + a.tanh()) + b",
    "<<nn.Sequential(nn.Conv2d({c}, 2 * {c}, 1), nn.BatchNorm2d(2 * {c}), {one:nn.GELU()|nn.ReLU()}"
    ", nn.Conv2d(2 * {c}, {c}, 1))>>({x}) + <<nn.Parameter(torch.rand({c}, 1, 1))>> * {x}",
    "s, t = {x}, {x}\n"
    "for m in <<nn.ModuleList([nn.Sequential({same}, nn.BatchNorm2d({c})), {same2}])>>:\n"
    "    s, t = t + {act}(m(s)), s\n"
    "s + t",
)

ENTRYWISE = (
    "{act}({x})",
    "{act}({x})",
    "<<{ACT}>>({x})",
    "<<nn.PReLU({c})>>({x})",
    "torch.exp(-{x}.abs())",
    "{x}.exp().clamp(max=3)",
    "{x} * torch.sigmoid({x})",
    "{x} * F.relu6({x} + 3) / 6",
    "{x}.clamp(-1, 1)",
    "{one:1 - {x}|{x} + 0.5|2 * {x} - 1|-{x}|0.5 / (1 + {x}.abs())|F.relu(-{x})}",
    "({x} + 1).square() / 4",
    "torch.rsqrt({x}.abs() + 1)",
    "torch.cat([F.relu({x}), F.relu(-{x})], 1)",
    "<<nn.Parameter(torch.rand({c}, 1, 1))>> * {x}",
    "{x} + <<nn.Parameter(torch.randn(1, {c}, 1, 1))>>",
    "<<nn.Parameter(torch.ones(()))>> * {x}",
    "{x} * <<buffer torch.linspace(0.5, 1, {c}).view(1, -1, 1, 1)>>",
    "<<nn.Dropout{one:2d|}(0.2)>>({x})",
    "F.dropout({x}, 0.2, self.training)",
    "{x}.clone().{one:relu_()|sigmoid_()|clamp_(min=0.1)}",
)

NORMS = (
    "<<nn.BatchNorm2d({c})>>({x})",
    "<<nn.BatchNorm2d({c})>>({x})",
    "<<nn.BatchNorm2d({c}, affine=False)>>({x})",
    "<<nn.BatchNorm2d({c}, track_running_stats=False)>>({x})",
    "<<nn.GroupNorm({gc}, {c})>>({x})",
    "<<nn.InstanceNorm2d({c})>>({x})",
    "<<nn.InstanceNorm2d({c}, affine=True{one:|, track_running_stats=True})>>({x})",
    "<<nn.LayerNorm({c})>>({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)",
    "<<nn.LayerNorm([{c}, {h}, {w}])>>({x})",
    "<<FrozenBatchNorm2d({c})>>({x})",
    "F.normalize({x}, dim=1) * 2",
    "{x} / ({x}.square().mean(1, keepdim=True) + 0.1).sqrt()",
    "<<nn.LocalResponseNorm(3)>>({x})",
    "F.instance_norm({x})",
    "F.layer_norm({x}, {x}.shape[1:])",
    "({x} - {x}.mean((2, 3), keepdim=True)) / ({x}.var((2, 3), keepdim=True) + 0.1).sqrt()",
)

POSITIONS = (
    "F.max_pool2d({x}, 2)",
    "<<nn.MaxPool2d(3, 2, 1{one:|, ceil_mode=True})>>({x})",
    "F.avg_pool2d({x}, 3, {one:1|2}, 1, count_include_pad={bool})",
    "<<nn.AvgPool2d(2, ceil_mode={bool})>>({x})",
    "F.avg_pool2d({x}, 3, 2, 1, ceil_mode=True, count_include_pad={bool})",
    "F.avg_pool2d({x}, 2, divisor_override=3)",
    "F.adaptive_{one:avg|max}_pool2d({x}, {one:4|(2, 3)|1})",
    "{x}[:, :, 1:-1, {one:::2|1:|:-1}]",
    "F.pad({x}, (1, 1, 0, 2), {one:value=0.7|value=0|'reflect'|'circular'|'replicate'})",
    "F.pad({x}, (1, -1, -1, 1))",
    "<<nn.{one:ZeroPad2d(1)|ConstantPad2d(1, 0.5)|ReflectionPad2d(1)|CircularPad2d(1)}>>({x})",
    "<<nn.Conv2d({c}, {o}, 3)>>(F.pad({x}, (1, 1, 1, 1)))",
    "F.interpolate({x}, scale_factor=2, mode={one:'nearest'|'bilinear'|'bicubic'|'area'})",
    "F.interpolate({x}, size=(8, 8), mode='bilinear', align_corners={bool})",
    "<<nn.Upsample(scale_factor=2)>>({x})",
    "{x}.{one:flip(3)|roll(1, 2)|transpose(2, 3)}",
    "{x} - {x}.mean((2, 3), keepdim=True)",
    "{x} * {x}.amax((2, 3), keepdim=True).sigmoid()",
    "{x}.cumsum(2) / {h}",
    "F.softmax({x}.flatten(2), -1).view_as({x}) * {h}",
    "F.softmax({x}.flatten(2), -1).view({x}.shape) * 4",
    "{x}.unflatten(0, (-1, 1)).flatten(0, 1)",
    "{x}.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)",
)

PAIRS = (
    "{x} + {y}",
    "{x} - {y}",
    "{x} * {y}",
    "{act}({x} + {y})",
    "{x} + 0.5 * {y}",
    "torch.add({x}, {y}, alpha=0.3)",
    "torch.sub({x}, {y}, alpha=2)",
    "torch.maximum({x}, {y})",
    "torch.stack([{x}, {y}]).mean(0)",
    "torch.stack([{x}, {y}], {one:1).sum(1)|-1).mean(-1)|1).amax(1)}",
    "torch.lerp({x}, {y}, 0.3)",
    "torch.cat([{x}, {y}], {one:2|3})",
    "{x}.reshape({y}.shape) + {y}",
    "torch.where({y} > 0, {x}, {y})",
    "{x} / (1 + {y}.abs())",
    "torch.addcmul({x}, {x}, {y}, value=0.3)",
    "t = {x}.clone()\nt {one:+=|-=|*=} {y}\nt",
    "({x} * {y}).sum(1, keepdim=True) / 8 + {x}",
    "{x} * {y}.mean((2, 3), keepdim=True).sigmoid()",
)

JOINS = (
    "torch.cat([{x}, {y}], 1)",
    "torch.cat(({y}, {x}), dim=1)",
    "torch.cat([{x}, {y}, {x}], -3)",
    "torch.cat([{x}, torch.zeros_like({y})], 1)",
    "torch.cat([{x}, {act}({y})], 1)",
    "<<nn.Conv2d({c}, {o}, 1)>>({x}) * {y}[:, :1]",
    "{x} + <<nn.Conv2d({cy}, {c}, 1, bias={bool})>>({y})",
    "{x} * torch.sigmoid(<<nn.Conv2d({cy}, {c}, 1)>>({y}))",
)

CHANNELS = (
    "{x}.chunk(2, 1)[{one:0|1}]",
    "{x}.split([{s}, {c} - {s}], 1)[{one:0|1}]",
    "{x}[:, {one::{s}|{s}:|::2|1::2}]",
    "{x}.narrow(1, 1, {s})",
    "{x}[:, [2, 0, 1]]",
    "{x}.{one:flip(1)|roll(1, 1)}",
    "<<nn.ChannelShuffle({gc})>>({x})",
    "F.channel_shuffle({x}, {gc})",
    "{x}.view({x}.size(0), {gc}, -1, *{x}.shape[2:]).transpose(1, 2).flatten(1, 2)",
    "{x}.reshape({x}.size(0), -1, {gc}, {x}.size(2), {x}.size(3)).mean(2)",
    "F.pixel_shuffle(<<nn.Conv2d({c}, 4 * {o}, 1)>>({x}), 2)",
    "<<nn.PixelUnshuffle(2)>>({x})",
    "F.pixel_shuffle(F.pixel_unshuffle({x}, 2), 2)",
    "F.pad({x}, (0, 0, 0, 0, 1, 2){one:|, value=0.4})",
    "{x}.mean(1, keepdim=True) + {x}",
    "{x}.amax(1, keepdim=True) - {x}",
    "F.softmax({x}, 1) * {c}",
    "F.log_softmax({x}, dim=1) / 2",
    "{x}.{one:repeat(1, 2, 1, 1)|repeat_interleave(2, 1)|tile(1, 2, 1, 1)}",
    "torch.cat([{x}[:, :1], {x}], 1)",
    "t = {x}.clone()\nt[:, {one:0|:2|::2}] = {one:0|0.5}\nt",
    "t = {x}.clone()\nt[:, :2] += 1\nt",
    "sum(torch.unbind({x}, 1))[:, None] / 4 + {x}",
    "{x}.index_select(1, <<buffer torch.tensor([0, 2, 1])>>)",
    "torch.cat(list({x}.split(1, 1))[::-1], 1)",
)

QUIRKS = (
    "{x} / {x}.size(1) ** 0.5",
    "{x} * {x}.shape[1] / 8",
    "{x}.sum(1, keepdim=True) / {x}.shape[1] + {x}",
    "{x} * (100 / {x}.numel())",
    "{x} * (8 / {x}[0, :, 0, 0].numel())",
    "t = <<nn.Conv2d({c}, {o}, 1)>>({x})\nt / {last}.out_channels ** 0.5",
    "t = <<nn.BatchNorm2d({c})>>({x})\nt.view(-1, {last}.num_features, *{x}.shape[2:])",
    "t = <<nn.BatchNorm2d({c})>>({x})\nt / {last}.weight.numel()",
    "t = <<nn.BatchNorm2d({c})>>({x})\nt * {last}.weight.abs().mean()",
    "len({x}[0]) * {x} / 8",
    "{x}.view({x}.size(0), {c}, -1).transpose(1, 2).reshape({x}.shape)",
    "{x}.view({x}.size(0), {c} * {h} * {w}).view({x}.shape)",
    "{x}.flatten(2).view_as({x})",
    "{x}.flatten(1).unflatten(1, ({c}, {h}, {w}))",
    "{x} + torch.zeros({x}.size(1), 1, 1, dtype={x}.dtype)",
    "{x} * torch.ones(1, {x}.size(1), 1, 1).to({x})",
    "{x} + torch.full({x}.shape, 0.3, dtype={x}.dtype)",
    "{x} + {x}.new_ones({x}.size(1), 1, 1)",
    "{x} + torch.arange({x}.size(1), dtype={x}.dtype).view(-1, 1, 1) / 8",
    "{x} + torch.linspace(0, 1, {c}, dtype={x}.dtype)[:, None, None]",
    "r = torch.linspace(-1, 1, {x}.size(2), dtype={x}.dtype).view(1, 1, -1, 1)\n"
    "r = r.expand({x}.size(0), 1, -1, {x}.size(3))\n"
    "<<nn.Conv2d({c} + 1, {o}, 1)>>(torch.cat([{x}, r], 1))",
    "r, q = torch.meshgrid(torch.linspace(-1, 1, {x}.size(2)), torch.linspace(-1, 1, {x}.size(3)), "
    "indexing='ij')\n"
    "r = torch.stack([r, q]).expand({x}.size(0), -1, -1, -1).type_as({x})\n"
    "torch.cat([r, {x}], 1)",
    "torch.cat([{x}, torch.ones_like({x}[:, :1])], 1)",
    "{x} + torch.arange({x}.size(3)).type_as({x}) / 16",
    "{x} + torch.arange({x}.size(3)).to({x}.dtype) / 16",
    "{x}.to({x}.dtype).double().to({x}.dtype)",
    "self.{name} = [torch.full((1,), 0.5).to({x}.dtype) for _ in range(2)]\n"
    "({x} + self.{name}[0]) * self.{name}[1]",
    "self.{name} = torch.linspace(0, 1, {x}.size(3)).to({x}.dtype)\n{x} + self.{name}",
    "init self.{name} = torch.zeros(1)\n"
    "self.{name} = torch.ones(1, dtype={x}.dtype)\n{x} * self.{name} + self.{name}",
    "init self.{name} = [torch.zeros(1)]\n"
    "self.{name} = [torch.ones(1, dtype={x}.dtype) / 2]\n{x} - self.{name}[0]",
    "init self.{name} = torch.full((1,), 0.5)\n{x} * self.{name}.to({x}.dtype)",
    "init self.{name} = None\nself.{name} = {x}\n{x}.sin()",
    "init self.register_buffer('{name}', torch.zeros(()))\n"
    "self.{name} = self.{name} + 1\n{x}.cos()",
    "init self.register_buffer('{name}', torch.zeros(()))\nself.{name} += 1\n-{x}",
    "init self.register_buffer('{name}', torch.zeros({c}))\n"
    "self.{name} = {x}.detach().mean((0, 2, 3))\n{x}.tanh()",
    "t = {x}.flatten(2)\n(t @ t.transpose(1, 2) / ({c} * {h})) @ t.mean(2, keepdim=True) / 2",
    "t = {x}.flatten(2)\n"
    "t = t @ t.transpose(1, 2) / (t.size(1) * t.size(2))\n"
    "<<nn.Linear({c} * {c}, {o})>>(t.flatten(1))",
    "t = {x}.mean((2, 3))\nt = t[:, :, None] * t[:, None, :]\n<<nn.Linear({c}, {o})>>(t)",
    "torch.einsum('nchw,dc->ndhw', {x}, <<nn.Parameter(torch.randn({o}, {c}) / {c})>>)",
    "torch.matmul({x}.permute(0, 2, 3, 1), <<nn.Parameter(torch.randn({c}, {o}) / {c})>>)"
    ".permute(0, 3, 1, 2)",
    "<<nn.Linear({c}, {o})>>({x}.permute(0, 2, 3, 1)).{one:permute(0, 3, 1, 2)|movedim(-1, 1)}",
    "<<nn.Conv2d({c}, {o}, 3, padding=1)>>({x}.to(memory_format=torch.channels_last))",
    "torch.stack([t.relu() for t in {x}])",
    "{x}.sort(3).values + {x}.topk(2, 3).values.mean(3, keepdim=True)",
    "{x}.masked_fill({x} < -0.5, 0.2)",
    "{x} + {x}.mean().item()",
    "{x} * float({x}.detach().abs().mean())",
    "{x} * {x}.std((1, 2, 3), keepdim=True)",
    "F.unfold({x}, 2)[:, :, ::3].transpose(1, 2)",
    "F.grid_sample({x}, F.affine_grid(torch.eye(2, 3, dtype={x}.dtype)[None]"
    ".expand({x}.size(0), -1, -1), {x}.shape, align_corners=False), align_corners=False)",
    "{x}.unsqueeze(2).squeeze(2)",
    "<<nn.Conv3d({c}, {o}, (1, 3, 3), padding=(0, 1, 1))>>({x}.unsqueeze(2)).squeeze(2)",
    "<<nn.Bilinear({c}, {c}, {o})>>({x}.mean((2, 3)), {x}.amax((2, 3)))",
    "t = {x}.mean((2, 3))\nt = <<nn.Conv1d(1, 1, 3, padding=1, bias=False)>>(t.unsqueeze(1))\n"
    "{x} * t.transpose(1, 2).unsqueeze(-1).sigmoid()",
    "{x} * <<nn.Embedding({c}, 1)>>(torch.arange({c})).view(1, -1, 1, 1)",
    "<<nn.utils.parametrizations.weight_norm(nn.Conv2d({c}, {o}, 3, padding=1))>>({x})",
    "torch.utils.checkpoint.checkpoint(<<{same}>>, {x}, use_reentrant=False)",
    "(lambda t: t * 2 - 1)({x}.sigmoid())",
    "t = {x}\nif self.training:\n    t = t + 0.1\nt.relu()",
    "t = {x}\nif t.size(1) > 4:\n    t = t * 0.5\nt",
    "t = {x}\nwhile t.size(1) > 8:\n    t = t[:, ::2]\nt",
    "(<<nn.Conv2d({c}, {o}, 1)>>({x}[0]) + <<nn.Conv2d({c}, {o}, 1)>>({x})).tanh()",
)

WEIGHTS = (
    "{reuse}({x})",
    "{reuse}({x})",
    "{reuse}({act}({x}))",
    "t = <<{same}>>({x})\n{last}({act}(t))",
    "t = <<nn.Sequential({same}, nn.BatchNorm2d({c}), nn.ReLU())>>({x})\n{last}(t) + t",
    "t = <<nn.BatchNorm2d({c})>>({x})\n{last}({act}(t))",
    "init self.{name} = nn.Conv2d({c}, {tied}.out_channels, {tied}.kernel_size, padding=1)\n"
    "init self.{name}.weight = {tied}.weight\nself.{name}({x})",
    "init self.{name} = nn.Conv2d({c}, {tied}.out_channels, 1, bias=False)\n"
    "init self.{name}.bias = {tied}.bias\nself.{name}({x})",
    "F.conv2d({x}, {tied}.weight, padding=1)",
    "F.conv2d({x}, <<nn.Conv2d({c}, {o}, 3)>>.weight, padding=1)",
    "F.conv2d({x}, <<nn.Conv2d({c}, {o}, 3)>>.weight.abs() / {c}, padding=1)",
    "F.conv2d({x}, <<nn.Parameter(torch.randn({o}, {c}, 1, 1) / {c})>>)",
    "F.conv_transpose2d({x}, {tied}.weight.transpose(0, 1), padding=0)",
    "t = <<{same}>>({x})\nt + {last}.weight.mean()",
    "t = <<nn.BatchNorm2d({c})>>({x})\nF.batch_norm(t.tanh(), {last}.running_mean, "
    "{last}.running_var, {last}.weight, {last}.bias)",
    "t = <<nn.Linear({c}, {c})>>({x}.permute(0, 2, 3, 1))\n"
    "F.linear(t.tanh(), {last}.weight.t()).permute(0, 3, 1, 2)",
    "init self.{name} = nn.BatchNorm2d({c})\ninit self.{name}b = nn.BatchNorm2d({c})\n"
    "init self.{name}b.weight = self.{name}.weight\nself.{name}({x}) + self.{name}b({x}.relu())",
    "init self.{name} = nn.ModuleDict({{'a': nn.BatchNorm2d({c})}})\n"
    "init self.{name}['b'] = self.{name}['a']\nself.{name}['b'](self.{name}['a']({x}).relu())",
)

ATTENTION = (
    "t = {x}.flatten(2).transpose(1, 2)\n"
    "t = t + <<nn.MultiheadAttention({c}, {heads}, batch_first=True)>>(t, t, t)[0]\n"
    "t.transpose(1, 2).{one:view_as({x})|reshape({x}.shape)|unflatten(2, {x}.shape[2:])"
    "|reshape({x}.size(0), -1, *{x}.shape[2:])}",
    "n, c, h, w = {x}.shape\n"
    "q, k, v = <<nn.Conv2d({c}, 3 * {c}, 1)>>({x}).reshape(n, 3, {heads}, c // {heads}, h * w)"
    ".unbind(1)\n"
    "a = (q.transpose(-2, -1) @ k / (c // {heads}) ** 0.5).softmax(-1)\n"
    "{x} + <<nn.Conv2d({c}, {c}, 1)>>((v @ a.transpose(-2, -1)).reshape(n, c, h, w))",
    "q = <<nn.Conv2d({c}, {d}, 1)>>({x}).flatten(2)\n"
    "k = <<nn.Conv2d({c}, {d}, 1)>>({x}).flatten(2)\n"
    "v = <<nn.Conv2d({c}, {o}, 1)>>({x}).flatten(2)\n"
    "a = torch.softmax(torch.{one:bmm(q.transpose(1, 2), k)|einsum('ncq,nck->nqk', q, k)}, -1)\n"
    "t = torch.matmul(v, a.transpose(1, 2))\n"
    "t.view(t.size(0), -1, {x}.size(2), {x}.size(3))",
    "t = {x}.flatten(2).transpose(1, 2)\n"
    "q, k, v = <<nn.Linear({c}, 3 * {c})>>(t).chunk(3, -1)\n"
    "t = F.scaled_dot_product_attention(q, k, v)\n"
    "t.transpose(1, 2).unflatten(2, {x}.shape[2:])",
    "t = {x}.flatten(2).transpose(1, 2)\n"
    "t = <<nn.TransformerEncoderLayer({c}, {heads}, 12, batch_first=True, dropout=0.0)>>(t)\n"
    "t.transpose(1, 2).reshape({x}.shape)",
    "q, k = <<nn.Conv2d({c}, 2 * {c}, 1)>>({x}).flatten(2).chunk(2, 1)\n"
    "a = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)).softmax(-1)\n"
    "(a @ {x}.flatten(2)).view_as({x})",
)

TO_SEQUENCE = (
    "{x}.flatten(2).transpose(1, 2)",
    "{x}.reshape({x}.size(0), {x}.size(1), -1).permute(0, 2, 1)",
    "<<nn.Conv2d({c}, {o}, 2, stride=2)>>({x}).flatten(2).mT",
    "t = <<nn.Sequential({conv}, nn.BatchNorm2d({o}))>>({x}).flatten(2).transpose(1, 2)\n"
    "torch.cat([<<nn.Parameter(torch.randn(1, 1, {o}))>>.expand(t.size(0), -1, -1), t], 1)",
)
SEQUENCE = (
    "{x} + <<nn.Sequential(nn.LayerNorm({c}), nn.Linear({c}, {o}), nn.GELU(), "
    "nn.Linear({o}, {c}))>>({x})",
    "<<nn.Linear({c}, {o})>>({act}({x}))",
    "<<nn.LayerNorm({c})>>({x})",
    "torch.cat([<<nn.Parameter(torch.randn(1, 1, {c}))>>.expand({x}.size(0), -1, -1), {x}], 1)",
    "torch.cat([<<nn.Parameter(torch.randn({c}))>>.repeat({x}.size(0), 1, 1), {x}], 1)",
    "{x} + <<nn.Parameter(torch.randn(1, {t}, {c}))>>",
    "{x} + <<nn.MultiheadAttention({c}, {heads}, batch_first=True)>>({x}, {x}, {x}, "
    "need_weights=False)[0]",
    "n, t, c = {x}.shape\n"
    "q, k, v = <<nn.Linear({c}, 3 * {c})>>({x}).{one:reshape|view}(n, t, 3, {heads}, c // {heads})"
    ".permute(2, 0, 3, 1, 4)\n"
    "a = (q @ k.transpose(-2, -1) * (c // {heads}) ** -0.5).softmax(-1)\n"
    "{x} + <<nn.Linear({c}, {c})>>((a @ v).transpose(1, 2).reshape(n, t, c))",
    "<<nn.Sequential(nn.Conv1d({c}, {o}, 3, padding=1), nn.BatchNorm1d({o}), {ACTo})>>"
    "({x}.transpose(1, 2)).transpose(1, 2)",
    "<<nn.BatchNorm1d({c})>>({x}.flatten(0, 1)).{one:view_as({x})|view({x}.shape)"
    "|unflatten(0, {x}.shape[:2])|reshape({x}.size(0), -1, {c})}",
    "<<nn.BatchNorm1d({c})>>({x}.transpose(1, 2)).transpose(1, 2)",
    "<<nn.Linear({t}, {t})>>({x}.transpose(1, 2)).transpose(1, 2) + {x}",
    "<<nn.GRU({c}, {o}, batch_first=True)>>({x})[0]",
    "{x} + <<nn.Embedding(64, {c})>>(torch.arange({x}.size(1)))",
)
TO_VECTOR = {
    "map": (
        "{x}.mean((2, 3))",
        "{x}.amax((-2, -1))",
        "F.adaptive_avg_pool2d({x}, 1).{one:flatten(1)|squeeze(3).squeeze(2)|view({x}.size(0), -1)"
        "|view({x}.size(0), {c})|reshape(-1, {x}.size(1))}",
        "<<nn.Linear({c} * {h} * {w}, {o})>>({x}.flatten(1))",
        "<<nn.Linear({c} * {h} * {w}, {o})>>({x}.view({x}.size(0), -1))",
        "<<nn.Linear({c} * {h} * {w}, {o})>>({x}.view(-1, {c} * {h} * {w}))",
        "<<nn.Linear({c} * {h} * {w}, {o})>>({x}.reshape({x}.size(0), {c} * {h} * {w}))",
        "<<nn.Linear({c} * 4, {o})>>(<<nn.Flatten()>>(F.adaptive_avg_pool2d({x}, 2)))",
        "<<nn.Linear({c} * {h} * {w}, {o})>>({x}.permute(0, 2, 3, 1).flatten(1))",
        "t = {x}.flatten(1)\n<<nn.Linear({c} * {h} * {w}, {o})>>(t.view(t.size(0), "
        "{x}.size(1) * {x}.size(2) * {x}.size(3)))",
        "torch.cat([{x}.mean((2, 3)), {x}.amax((2, 3))], 1)",
    ),
    "sequence": ("{x}[:, 0]", "{x}.mean(1)", "<<nn.LayerNorm({c})>>({x})[:, {one:0|-1}]"),
    "vector": (),
}
VECTOR = (
    "{act}(<<nn.BatchNorm1d({o})>>(<<nn.Linear({c}, {o}, bias={bool})>>({x})))",
    "<<nn.Sequential(nn.Linear({c}, {o}), nn.BatchNorm1d({o}), {ACTo}, nn.Dropout(0.1))>>({x})",
    "{act}(<<nn.Linear({c}, {o})>>({x}))",
    "{x} + <<nn.Sequential(nn.Linear({c}, {o}), nn.BatchNorm1d({o}), nn.ReLU(), "
    "nn.Linear({o}, {c}))>>({x})",
    "<<nn.LayerNorm({c})>>({x})",
    "F.normalize({x}) * 2",
    "<<nn.BatchNorm1d({c})>>({x})",
    "{x} / {x}.size(1) ** 0.5",
    "{x} / {x}.shape[-1]",
    "torch.cat([{x}, {x}.square()], 1)",
    "{x}.softmax(1) * {c}",
    "<<nn.Linear({c}, {o})>>({x}) + <<nn.Linear(3, {o})>>(F.one_hot(torch.arange({x}.size(0)) % 3"
    ", 3).to({x}.dtype))",
)
TO_MAP = {
    "sequence": (),
    "map": (),
    "vector": (
        "{one:{x}[:, :, None, None]|{x}.view({x}.size(0), -1, 1, 1)}.expand(-1, -1, 4, 4)",
        "<<nn.Linear({c}, {o} * 16)>>({x}).view(-1, {o}, 4, 4)",
    ),
}

SINGLE = ("{x}.float() / 2", "torch.cat([{x}, torch.zeros(*{x}[:, :1].shape)], 1)")
"""Code that makes float32 by itself: only for networks in float32."""

HEADS = {
    "map": (
        "{x}",
        "<<nn.Conv2d({c}, 4, 1)>>({x})",
        "<<nn.Linear({c}, 4)>>({x}.mean((2, 3)))",
        "<<nn.Linear({c}, 4)>>(F.relu({x}).amax((2, 3)))",
        "<<nn.Linear({c} * {h} * {w}, 4)>>({x}.flatten(1))",
        "{x}.mean(1)",
    ),
    "sequence": ("{x}", "<<nn.Linear({c}, 4)>>({x}.mean(1))", "<<nn.Linear({c}, 4)>>({x}[:, 0])"),
    "vector": (
        "{x}",
        "<<nn.Linear({c}, 4)>>({x})",
        "<<nn.Linear({c}, 4)>>(F.dropout({x}, 0.5, self.training))",
    ),
}
