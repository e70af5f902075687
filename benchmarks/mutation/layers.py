"""Wrong variants of how a map is folded into a linear layer, and of the forward of such a layer."""

from benchmarks.mutation.mutant import mutants

_LINEAR_TESTS = (
    "core/layers/test_linear.py core/layers/test_linear_state.py core/layers/test_linear_kinds.py "
    "core/layers/test_linear_padded.py core/layers/test_linear_geometry.py "
    "core/layers/test_linear_named.py core/test_canonize.py"
)

LINEAR = mutants(
    "core/layers/linear.py",
    _LINEAR_TESTS,
    (
        "the axes of a transposed layer as of any other",
        "if is_input == linear_type(module).transposed:",
        "if not is_input:",
    ),
    (
        "rows dealt out to the groups in turn",
        "return values.view(flat.shape[0], -1, 1)",
        "return values.view(-1, flat.shape[0]).T.unsqueeze(2)",
    ),
    (
        "columns dealt out to the groups in turn",
        "values = values.view(flat.shape[0], 1, -1)",
        "values = values.view(-1, flat.shape[0]).T.unsqueeze(1)",
    ),
    ("channels dealt out to the taps in turn", "values.repeat_interleave(times, 2)", "values.repeat(1, 1, times)"),
    ("left: a layer without bias gets none", "new_bias = shift.clone()", "new_bias = torch.zeros_like(shift)"),
    ("left: layers share one bias", "new_bias = shift.clone()", "new_bias = shift"),
    (
        "left: the bias not scaled",
        "bias.to(dtype) * scale.view(broadcast) + shift.view(broadcast)",
        "bias.to(dtype) + shift.view(broadcast)",
    ),
    (
        "left: the shift scaled instead of the bias",
        "bias.to(dtype) * scale.view(broadcast) + shift.view(broadcast)",
        "bias.to(dtype) + shift.view(broadcast) * scale.view(broadcast)",
    ),
    (
        "left: the shift ignored",
        "bias.to(dtype) * scale.view(broadcast) + shift.view(broadcast)",
        "bias.to(dtype) * scale.view(broadcast)",
    ),
    (
        "left: the bias ignored",
        "bias.to(dtype) * scale.view(broadcast) + shift.view(broadcast)",
        "torch.zeros_like(bias).to(dtype) + shift.view(broadcast)",
    ),
    (
        "right: summed over the output of a transposed layer",
        "        return products.sum(1).view(-1, *kernel)",
        "        pass",
    ),
    (
        "right: the shift scaled",
        "_constant_through(module, flat, shift)",
        "_constant_through(module, _grouped(module, new_weight), shift)",
    ),
    ("right: the border ignored", "if any(geometry.has_border for geometry in geometries):", "if False:"),
    (
        "right: the border ignored unless on every axis",
        "if any(geometry.has_border for",
        "if all(geometry.has_border for",
    ),
    (
        "right: the kernel mirrored at the border",
        "unsqueeze(-2) * inside).sum(-1)",
        "unsqueeze(-2) * inside.flip(1)).sum(-1)",
    ),
    ("right: the border turned around", "unsqueeze(-2) * inside).sum(-1)", "unsqueeze(-2) * inside.flip(0)).sum(-1)"),
    (
        "right: the axes exchanged at the border",
        "for axis, geometry in enumerate(geometries, start=1):",
        "for axis, geometry in enumerate(reversed(geometries), start=1):",
    ),
    (
        "right: the bias ignored",
        "taps = _widen(taps, wide) + _widen(bias.to(dtype), wide)",
        "taps = _widen(taps, wide)",
    ),
    (
        "right: the bias instead of the shift",
        "taps = _widen(taps, wide) + _widen(bias.to(dtype), wide)",
        "taps = torch.zeros_like(_widen(taps, wide)) + _widen(bias.to(dtype), wide)",
    ),
    (
        "the map rounded to half precision",
        "dtype=working_dtype(like.dtype))",
        "dtype=like.dtype)",
    ),
    (
        "groups lie inside one another",
        "return weight.reshape(groups, weight.shape[0] // groups, -1)",
        "return weight.reshape(weight.shape[0] // groups, groups, -1).transpose(0, 1)",
    ),
    (
        "a bias map for 1d layers is not gathered",
        'if taps.dim() > 1 and "forward" not in vars(module):',
        'if taps.dim() > 2 and "forward" not in vars(module):',
    ),
    ("a computed weight is computed twice", "        if by_class is not None:\n", "        if False:\n"),
    ("new parameters ask for no gradient", "(old if former is None else former).requires_grad", "False"),
)

FORWARD = mutants(
    "core/layers/linear.py",
    _LINEAR_TESTS,
    ("standardized by the unbiased variance", "correction=0", "correction=1"),
    ("standardized without the mean", "(filters - mean) *", "filters *"),
    ("standardized without eps", "(variance + float(eps)).rsqrt()", "variance.rsqrt()"),
    ("standardized without the gain's factor", "gain.view(-1, 1, 1, 1) * float(scale)", "gain.view(-1, 1, 1, 1)"),
    ("padding 'same' without dilation", "reach = dilation * (kernel - 1)", "reach = kernel - 1"),
    (
        "padding 'same' with the odd element in front",
        "low, high = reach // 2, reach - reach // 2",
        "low, high = reach - reach // 2, reach // 2",
    ),
    (
        "padding that copies taken for zeros",
        "elif isinstance(padding, str) or not _pads_with_zeros(module, entry):",
        "elif isinstance(padding, str):",
    ),
    ("the padding of the first axis on all", "int(padding[axis])", "int(padding[0])"),
    ("own padding exchanged", "low, high = low + first, high + last", "low, high = low + last, high + first"),
    ("own padding ignored", "low, high = low + first, high + last", "low, high = low, high"),
    ("own padding on the other axis", "return (top, bottom), (left, right)", "return (left, right), (top, bottom)"),
    ("output_padding ignored", "max(stride, dilation) - 1 if entry.transposed else 0", "0"),
    (
        "output_padding ignored up to the dilation",
        "max(stride, dilation) - 1 if entry.transposed else 0",
        "stride - 1 if entry.transposed else 0",
    ),
    (
        "a padding mode that the layer does not look at",
        ' == "zeros" or not entry.looks_at_padding_mode()',
        ' == "zeros"',
    ),
    ("a gathered bias widens an autocast output", "layer.borders, sizes).to(output.dtype)", "layer.borders, sizes)"),
    (
        "the map is not gathered by the input",
        "zip(input.shape[-spatial:], output",
        "zip(output.shape[-spatial:], output",
    ),
    ("inside and at the border added up", "bias - inner.view(-1, *(1,) * spatial)", "bias"),
    (
        "output_size ignored",
        "padding, added, module.groups, dilation)",
        "padding, 0, module.groups, dilation)",
    ),
    (
        "padded on the other axes",
        "for pair in reversed(ends) for amount in pair",
        "for pair in ends for amount in pair",
    ),
    ("padded at the other end", "for amount in pair]", "for amount in reversed(pair)]"),
)

WEIGHTS = mutants(
    "core/layers/weights.py",
    "core/layers/test_weights.py core/layers/test_weights_cases.py core/layers/test_weights_named.py",
    ("a weight that a hook left behind", "                hook(stand_in, ())\n", "                pass\n"),
    ("a power iteration more", "            if part.training:\n", "            if False:\n"),
    ("a bias computed by hooks forgotten", 'TENSORS: Final = ("weight", "bias")', 'TENSORS: Final = ("weight",)'),
)

FUNCTIONAL = mutants(
    "core/explicit.py",
    "core/test_explicit.py core/test_rewrite_layers.py core/test_rewrite_norms.py core/test_explicit_sizes.py "
    "core/trace/test_tracer_calls.py core/test_canonize_seldom.py",
    (
        "the dilation of a pool ignored",
        "stride, padding, dilation, ceil_mode=ceil_mode)",
        "stride, padding, ceil_mode=ceil_mode)",
    ),
    ("ceil_mode of a pool ignored", "padding, dilation, ceil_mode=ceil_mode)", "padding, dilation)"),
    ("any lower clamp as a ReLU", "if min == 0 and max is None:", "if max is None:"),
    ("the alpha of an ELU ignored", "return nn.ELU(alpha)", "return nn.ELU()"),
    ("a scaled ELU as an ELU", "if (float(scale), input_scale) != (1.0, 1.0):", "if False:"),
    (
        "weight and bias of a BatchNorm exchanged",
        "BatchNorm(running_mean, running_var, weight, bias, eps)",
        "BatchNorm(running_mean, running_var, bias, weight, eps)",
    ),
    ("the eps of a BatchNorm ignored", "running_var, weight, bias, eps)", "running_var, weight, bias, 1e-5)"),
    ("a difference the other way round", "return left - right", "return right - left"),
    ("a gate that is no sigmoid", "self.multiply(signal, self.gate(gate))", "self.multiply(signal, gate)"),
    ("arguments by keyword lost", "**fill(self.kwargs, values)", ""),
)

COPIES = mutants(
    "core/layers/linear.py",
    "core/test_untangle.py",
    (
        "copies without shifts",
        "bias.to(dtype) * scales.view(broadcast) + shifts.view(broadcast)",
        "bias.to(dtype) * scales.view(broadcast)",
    ),
    ("the bias is not scaled", "new_bias = bias.to(dtype) * scales.view(broadcast) +", "new_bias = bias.to(dtype) +"),
    (
        "copies of groups apart",
        "copies.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)",
        "copies.flatten(0, 1)",
    ),
    (
        "transposed copies by input",
        ".movedim(0, 2).flatten(2, 3).flatten(0, 1)",
        ".movedim(0, 3).flatten(2, 3).flatten(0, 1)",
    ),
    ("as many channels as before", 'edits.set(module, "__dict__", name, channels * len(affines))', "pass"),
)
