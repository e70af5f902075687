"""Wrong variants of what activations and pools become when they absorb the map before them."""

from benchmarks.mutation.mutant import mutants

RELU = mutants(
    "core/activations.py",
    "core/test_activations_relu.py core/test_activations_relu_relevance.py core/test_canonize_activations.py",
    ("the threshold with the wrong sign", "threshold, sign, left = -shift /", "threshold, sign, left = shift /"),
    ("the threshold not divided", "threshold, sign, left = -shift / scale,", "threshold, sign, left = -shift,"),
    (
        "beside a tiny scale: the threshold with the wrong sign",
        "torch.where(normal, -shift / divisor,",
        "torch.where(normal, shift / divisor,",
    ),
    (
        "beside a tiny scale: the threshold not divided",
        "torch.where(normal, -shift / divisor,",
        "torch.where(normal, -shift,",
    ),
    (
        "a tiny scale: the threshold with the wrong sign",
        "torch.where(tiny, -shift, torch.zeros_like(shift))",
        "torch.where(tiny, shift, torch.zeros_like(shift))",
    ),
    ("a tiny scale: no threshold", "torch.where(tiny, -shift, torch.zeros_like(shift))", "torch.zeros_like(shift)"),
    (
        "a tiny scale: min where it is negative",
        "sign = torch.where(tiny, ones, sign)",
        "sign = sign.clone()",
    ),
    (
        "max for every sign",
        "-shift / scale, scale.sign(), affine",
        "-shift / scale, scale.sign().abs(), affine",
    ),
    (
        "scale zero: max",
        "-shift / scale, scale.sign(), affine",
        "-shift / scale, torch.where(scale < 0, -1.0, 1.0).to(scale.dtype), affine",
    ),
    ("scale zero: the constant not clipped", "torch.where(zero, shift.relu(), shift)", "shift"),
    ("scale zero: the constant forgotten", "torch.where(zero, shift.relu(), shift)", "torch.where(zero, 0.0, shift)"),
    ("every shift clipped", "torch.where(zero, shift.relu(), shift)", "shift.relu()"),
    ("a tiny scale taken twice", "Affine(divisor,", "Affine(scale,"),
    ("a tiny scale forgotten", "if bool(tiny.any()) else None", "if False else None"),
    ("scale zero: no sign kept", "bool((sign <= 0).any())", "bool((sign < 0).any())"),
    (
        "a tiny scale divided by",
        "input if factor is None else input * _per",
        "input if factor is None else input / _per",
    ),
    ("relevance stops though it should pass", "compares) if clip_relevance", "compares) if True"),
    ("relevance passes though it should stop", "compares) if clip_relevance", "compares) if False"),
    (
        "a unit at its threshold counts as open",
        "clipped = value <= lower",
        "clipped = value < lower",
    ),
    (
        "a unit of negative scale at its threshold counts as open",
        "clipped | (value >= upper)",
        "clipped | (value > upper) | (lower == upper)",
    ),
    ("no unit of negative scale counts as clipped", "clipped | (value >= upper)", "clipped"),
    (
        "with gradients: open at the threshold",
        "torch.where(value <= lower, lower,",
        "torch.where(value < lower, lower,",
    ),
    ("with gradients: no min", "torch.where(value >= upper, upper, value)", "value"),
    ("no unit of positive scale counts as clipped", "clipped | (value >= upper)", "value >= upper"),
    (
        "scale zero: open below",
        "torch.where(sign >= 0, threshold, -torch.inf)",
        "torch.where(sign > 0, threshold, -torch.inf)",
    ),
    (
        "scale zero: open above",
        "torch.where(sign <= 0, threshold, torch.inf)",
        "torch.where(sign < 0, threshold, torch.inf)",
    ),
    (
        "min and max exchanged",
        "torch.where(sign >= 0, threshold, -torch.inf), torch.where(sign <= 0,",
        "torch.where(sign <= 0, threshold, -torch.inf), torch.where(sign >= 0,",
    ),
    (
        "without gradients: no min",
        "return bounded.clamp_(max=upper) if is_eager(bounded) else bounded.clamp(max=upper)",
        "return bounded",
    ),
    ("without gradients: no max", "bounded = value.clamp(min=lower)", "bounded = value.clone()"),
)

ABSORBED = mutants(
    "core/activations.py",
    "core/test_activations_relu.py core/test_activations_general.py core/test_activations_relu_relevance.py "
    "core/test_activations_general_modules.py "
    "core/test_canonize_activations.py",
    (
        "every scale but zero divided by",
        "return (scale.abs() >= SMALLEST_SCALE) & (quotient.abs() <= LARGEST_THRESHOLD)",
        "return scale != 0",
    ),
    ("thresholds of any size", " & (quotient.abs() <= LARGEST_THRESHOLD)", ""),
    ("negative scales count as tiny", "(scale.abs() >= SMALLEST_SCALE)", "(scale >= SMALLEST_SCALE)"),
    ("scale zero counts as tiny", "return zero, normal, ~(zero | normal)", "return zero, normal, ~normal"),
    ("a map absorbed later composed as if after", "earlier.whole.after(affine)", "affine.after(earlier.whole)"),
    ("a map absorbed later instead of both", "affine if earlier is None else earlier.whole.after(affine)", "affine"),
    ("the scale left earlier forgotten", "left.scale / former.scale,", "left.scale,"),
    ("the shift left earlier forgotten", "(left.shift - former.shift) / former.scale", "left.shift / former.scale"),
    (
        "the shift not divided by the scale left earlier",
        "(left.shift - former.shift) / former.scale",
        "left.shift - former.shift",
    ),
    ("the third map meets the second alone", "_SLOT, _Absorbed(whole, left))", "_SLOT, _Absorbed(affine, left))"),
    ("repeated channels interleaved", "values.repeat_interleave(input", "values.repeat(input"),
)

REFERENCE = mutants(
    "core/activations.py",
    "captum/test_methods.py",
    ("a reference method sees clipped units as constants", "return any(_takes", "return False and any(_takes"),
)

GENERAL = mutants(
    "core/activations.py",
    "core/test_activations_general.py core/test_activations_general_modules.py "
    "core/test_activations_general_relevance.py core/test_canonize_activations.py "
    "core/test_activations_of_packages.py",
    (
        "quotients of any size",
        "(constant - whole.shift).abs() <= LARGEST_THRESHOLD * whole.scale.abs()",
        "constant == constant",
    ),
    (
        "smooth: a tiny scale taken twice",
        "Affine(torch.where(normal, whole.scale, one),",
        "Affine(torch.where(zero, one, whole.scale),",
    ),
    ("scale zero: the constant not activated", "torch.where(zero, constant, whole.shift)", "whole.shift"),
    ("every shift activated", "torch.where(zero, constant, whole.shift)", "constant"),
    ("the offset forgotten", 'general = (value - _buffer(module, "offset", wide)) /', "general = (value) /"),
    (
        "the offset with the wrong sign",
        'general = (value - _buffer(module, "offset", wide)) /',
        'general = (value + _buffer(module, "offset", wide)) /',
    ),
    ("multiplied instead of divided", '"offset", wide)) / _buffer(', '"offset", wide)) * _buffer('),
    ("computed in half precision", "_as_own_gradient(input).to(working_dtype(input.dtype))", "_as_own_gradient(input)"),
    ("scale zero: the rounding of the constant", "if bool(zero.any()):", "if False:"),
    ("the shift before it with the wrong sign", '"scale", input) + _buffer(', '"scale", input) - _buffer('),
    ("the share upside down", "slope = activated / before", "slope = before / activated"),
    ("the share of all as of those linear by pieces", "if is_linear_by_pieces:", "if True:"),
    ("the share of those linear by pieces as of all", "if is_linear_by_pieces:", "if False:"),
    ("the share not limited", "slope.nan_to_num(0, 1, 0).clamp(0, 1)", "slope.nan_to_num(0, 1, 0)"),
    (
        "the share limited to one sign",
        "slope.nan_to_num(0, 1, 0).clamp(0, 1)",
        "slope.nan_to_num(0, 1, 0).clamp(-1, 0)",
    ),
    ("linear by pieces: nothing passes where g is zero", "slope.nan_to_num(0, 0, 0))", "torch.zeros_like(slope))"),
    ("linear by pieces: infinite shares", "torch.where(share.isfinite(), share,", "torch.where(~share.isnan(), share,"),
    ("no number where nothing passes", "torch.where(share == 0, 0, gradient * share)", "gradient * share"),
    ("all relevance passes", "torch.where(share == 0, 0, gradient * share)", "torch.where(share == 0, 0, gradient)"),
    ("smooth: relevance stops though it should pass", "by_pieces) if clip_relevance", "by_pieces) if True"),
    ("smooth: relevance passes though it should stop", "by_pieces) if clip_relevance", "by_pieces) if False"),
    ("what only looks on is taken for a rule", "setattr(marked, _OWN, ctx.own)", "pass"),
    ("a rule is taken for what only looks on", "is ctx.call:", "is not ctx:"),
    ("relevance stops twice", "if stop and earlier is None:", "if stop:"),
)

POOLING = mutants(
    "core/activations.py",
    "core/test_activations_pools.py core/test_activations_of_packages.py core/test_canonize_activations.py",
    ("max and min exchanged", "affine.scale < 0, -1.0, 1.0", "affine.scale > 0, -1.0, 1.0"),
    ("a pool: max for every sign", "affine.scale < 0, -1.0, 1.0", "affine.scale < 0, 1.0, 1.0"),
    ("two maps: the sign of the later", "sign if former is None else sign * former", "sign"),
    (
        "two maps: the sign of the earlier",
        "sign if former is None else sign * former",
        "sign if former is None else former",
    ),
    ("the sign not turned back", "input * sign, *sizes) * sign", "input * sign, *sizes)"),
    ("the sign turned back alone", "forward(module, input * sign, *sizes)", "forward(module, input, *sizes)"),
)

ABSORB = mutants(
    "core/activations.py",
    "core/test_activations_general.py core/test_activations_general_modules.py "
    "core/test_activations_general_relevance.py core/test_activations_pools.py "
    "core/test_activations_relu_relevance.py auditing/test_audit.py auditing/test_causes.py",
    ("what passes instead of what stops", "return relevance - handed_down", "return handed_down"),
    ("leaky ReLUs as any other", "is_linear_by_pieces=True)", "is_linear_by_pieces=False)"),
    ("pools with indices", 'getattr(module, "return_indices", False)', "False"),
    ("a forward on the instance ignored", '(not again and "forward" in vars(module)) or', ""),
)
