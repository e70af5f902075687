"""What the tests must notice: functions of the package that compute something else, each by one mistake.

A variant takes the right function and its arguments. Most change an argument or the result; see
:mod:`tests.support.wrong`.
"""

from dataclasses import replace

import torch

from canon_bridge.captum.rules import base, first, passing, signed
from canon_bridge.captum.rules import linear as linear_rules
from canon_bridge.core import activations, explicit, labels, norms, operations, search, untangle
from canon_bridge.core.affine import Affine, working_dtype
from canon_bridge.core.labels import Labels, Positions
from canon_bridge.core.layers import border, linear, weights
from canon_bridge.core.layers.border import AxisGeometry, Border
from canon_bridge.core.layers.parameters import parameter
from canon_bridge.core.operations import Kind
from canon_bridge.zennit import arithmetic
from tests.support.wrong import wrong

# --- what is read from a BatchNorm, and what is written to one ---


@wrong(norms._scale_of_batch_norm)
def eps_forgotten(right, norm):
    """``weight / sqrt(var)``."""
    return right(norm) * (1 + norm.eps / norm.running_var).sqrt()


@wrong(norms._scale_of_batch_norm)
def eps_outside_the_root(right, norm):
    """``weight / (sqrt(var) + eps)``."""
    return right(norm) * (norm.running_var + norm.eps).sqrt() / (norm.running_var.sqrt() + norm.eps)


@wrong(norms._scale_of_batch_norm)
def sign_of_the_weight_lost(right, norm):
    return right(norm).abs()


@wrong(norms._read_batch_norm)
def mean_forgotten(right, norm):
    read = right(norm)
    return Affine(read.scale, read.shift + read.scale * norm.running_mean)


@wrong(norms._read_batch_norm)
def bias_forgotten(right, norm):
    read = right(norm)
    return read if norm.bias is None else Affine(read.scale, read.shift - norm.bias)


@wrong(norms._write_batch_norm)
def identity_with_eps(right, norm, affine):
    return {name: value for name, value in right(norm, affine).items() if name != "eps"}


@wrong(norms.compose)
def norms_composed_in_the_other_order(right, edits, norm, affine, comes_before):
    right(edits, norm, affine, not comes_before)


@wrong(norms.as_convolution)
def leftover_without_sign(right, norm, of=None):
    weight, bias = right(norm, of)
    return parameter(weight.abs(), weight.requires_grad), bias


# --- affine maps ---


@wrong(Affine.after)
def composed_in_the_other_order(right, self, before):
    return right(before, self)


@wrong(Affine.after)
def inner_shift_not_scaled(right, self, before):
    return Affine(right(self, before).scale, before.shift + self.shift)


@wrong(Affine.joined)
def joined_in_the_other_order(right, self, other):
    return right(other, self)


@wrong(Affine.repeat)
def repeated_in_turn(right, self, times):
    """Channels after a flatten: a, b, a, b instead of a, a, b, b."""
    return Affine(self.scale.repeat(times), self.shift.repeat(times))


@wrong(Affine.select)
def what_stays_is_scaled(right, self, channels):
    return right(self, [max(channel, 0) for channel in channels])


@wrong(working_dtype)
def merged_in_half_precision(right, dtype):
    return dtype


# --- folding into a linear layer ---


@wrong(linear.fold_after)
def left_bias_not_scaled(right, edits, layer, *maps):
    """``b + t`` instead of ``s b + t``."""
    if layer.bias is not None and layer.bias.dim() == 1:
        maps = [Affine(affine.scale, affine.shift + (1 - affine.scale) * layer.bias.detach()) for affine in maps]
    right(edits, layer, *maps)


@wrong(linear.fold_before)
def right_shift_through_the_scaled_kernel(right, edits, layer, affine):
    """``sum W s t`` instead of ``sum W t``."""
    right(edits, layer, Affine(affine.scale, affine.scale * affine.shift))


@wrong(linear._constant_through)
def right_kernel_mirrored(right, layer, flat, shift):
    taps = right(layer, flat, shift)
    return taps.flip(tuple(range(1, taps.dim())))


@wrong(linear._constant_through)
def right_axes_exchanged(right, layer, flat, shift):
    taps = right(layer, flat, shift)
    return taps.mT if taps.dim() > 2 and taps.shape[-1] == taps.shape[-2] else taps


@wrong(linear._spread)
def channels_dealt_out_to_groups_in_turn(right, values, flat, layer, *, is_input):
    return right(values.view(-1, flat.shape[0]).T.reshape(-1), flat, layer, is_input=is_input)


@wrong(linear._spread)
def transposed_layer_as_any_other(right, values, flat, layer, *, is_input):
    is_square = linear.in_channels(layer) == linear.out_channels(layer)
    is_exchanged = is_square and linear.linear_type(layer).transposed
    return right(values, flat, layer, is_input=is_input != is_exchanged)


@wrong(linear._axis_geometry)
def same_padding_with_the_odd_element_in_front(right, *arguments):
    found = right(*arguments)
    return replace(found, low=found.high, high=found.low)


@wrong(linear._axis_geometry)
def same_padding_without_dilation(right, layer, *arguments):
    found = right(layer, *arguments)
    reach = found.kernel - 1
    return replace(found, low=reach // 2, high=reach - reach // 2) if layer.padding == "same" else found


@wrong(linear._filters)
def standardized_by_the_unbiased_variance(right, layer):
    biased, unbiased = (layer.weight.flatten(1).var(1, correction=n) + layer.eps for n in (0, 1))
    return right(layer) * (biased / unbiased).sqrt().view(-1, 1, 1, 1)


@wrong(linear._filters)
def standardized_without_the_mean(right, layer):
    rows = layer.weight.flatten(1)
    return right(layer) + (rows.mean(1) / (rows.var(1, correction=0) + layer.eps).sqrt()).view(-1, 1, 1, 1)


@wrong(linear.fold_after)
def copies_in_the_other_order(right, edits, layer, *maps):
    right(edits, layer, *maps[::-1])


@wrong(linear._side_by_side)
def copies_of_groups_apart(right, copies, groups):
    return right(copies, 1)


@wrong(weights._evaluate)
def weight_before_its_parametrization(right, parametrization):
    return vars(parametrization)["_parameters"].get("original", right(parametrization))


# --- the border: which taps lie inside the input ---


@wrong(AxisGeometry.has_border)
def no_border_at_the_upper_end(right, self):
    return right(self) if self.transposed else self.low > 0


@wrong(AxisGeometry.padding)
def padding_by_size_with_the_odd_element_in_front(right, self, size):
    return right(self, size)[::-1] if self.by_size else right(self, size)


@wrong(AxisGeometry.valid_taps)
def taps_of_the_next_position(right, self, position, size):
    return right(self, position + 1, size)


@wrong(AxisGeometry.valid_taps)
def stride_ignored(right, self, position, size):
    return right(self if self.transposed else replace(self, stride=1), position, size)


@wrong(AxisGeometry.taps)
def last_tap_forgotten(right, self, first, last, phase):
    return right(self, first, last - 1, phase)


@wrong(AxisGeometry.taps)
def phase_turned(right, self, first, last, phase):
    return right(self, first, last, -phase)


@wrong(AxisGeometry.taps)
def dilation_ignored_in_the_phase(right, self, first, last, phase):
    return right(replace(self, dilation=1), first, last, phase)


@wrong(Border.rows)
def gathered_from_the_other_end(right, self, *sizes):
    return right(self, *sizes).flip(0)


@wrong(border.add_at_border)
def corner_added_twice(right, output, rest, borders, sizes):
    right(output, rest, borders, sizes)
    if len(borders) == 2:
        output[..., 0, 0] += border.gather(rest, borders, sizes).expand(output.shape[-3:])[..., 0, 0]


# --- thresholded ReLUs ---


@wrong(activations._write_thresholds)
def threshold_turned(right, edits, relu, affine):
    left = right(edits, relu, affine)
    edits.set_buffer(relu, "thr_value", -relu.thr_value)
    return left


@wrong(activations._bounds)
def maximum_for_negative_scales(right, relu, input):
    lower, upper = right(relu, input)
    return lower if upper is None else torch.where(lower.isinf(), upper, lower), None


@wrong(activations._write_thresholds)
def constant_of_scale_zero_not_clipped(right, edits, relu, affine):
    left = right(edits, relu, affine)
    return Affine(left.scale, torch.where(affine.scale == 0, affine.shift, left.shift))


@wrong(activations._can_divide)
def every_scale_but_zero_divided_by(right, scale, quotient):
    return scale != 0


@wrong(activations._is_clipped)
def open_at_the_threshold(right, value, lower, upper):
    return value < lower if upper is None else (value < lower) | (value > upper)


@wrong(activations.stop_at_clipped)
def relevance_passes_clipped_units(right, compares, relu, args):
    return None


@wrong(activations.absorb_into_relu)
def relevance_stops_though_it_should_pass(right, edits, relu, affine, clip_relevance, *compares):
    return right(edits, relu, affine, True, *compares)


@wrong(activations.compares_with_baselines)
def reference_methods_see_constants(right, module):
    return False


# --- other activations, and pools ---


@wrong(activations._composed)
def what_was_left_earlier_stays(right, edits, module, *arguments):
    right(edits, module, *arguments)
    return vars(module)[activations._SLOT].left


@wrong(activations._per_channel)
def absorbed_in_turn_after_a_flatten(right, values, input):
    return right(values.repeat(input.shape[1] // values.numel()), input)


@wrong(activations._before)
def shift_in_front_turned(right, module, input):
    return right(module, input) - 2 * activations._buffer(module, "shift", input)


@wrong(activations._general_activation)
def offset_forgotten(right, module, input):
    offset, factor = (activations._buffer(module, name, input) for name in ("offset", "factor"))
    return right(module, input) + offset / factor


@wrong(activations._write_general)
def constant_of_scale_zero_not_activated(right, edits, module, affine):
    left = right(edits, module, affine)
    return Affine(left.scale, torch.where(affine.scale == 0, affine.shift, left.shift))


@wrong(activations._share)
def share_of_the_other_kind(right, is_linear_by_pieces, *arguments):
    return right(not is_linear_by_pieces, *arguments)


@wrong(activations.absorb_into_max_pool)
def maximum_for_every_sign(right, edits, pool, affine, *arguments):
    left = right(edits, pool, affine, *arguments)
    edits.set_buffer(pool, "pool_sign", torch.ones_like(affine.scale))
    return left


@wrong(activations.absorb_into_max_pool)
def sign_of_the_later_map_alone(right, edits, pool, affine, *arguments):
    left = right(edits, pool, affine, *arguments)
    edits.set_buffer(pool, "pool_sign", torch.where(affine.scale < 0, -torch.ones_like(affine.scale), 1))
    return left


@wrong(activations.stopped_at)
def what_passes_for_what_stops(right, module, input, relevance):
    return relevance - right(module, input, relevance)


# --- where channels lie, and who reads them ---


@wrong(Labels.along)
def channels_in_order_of_their_numbers(right, self, axis):
    found = right(self, axis)
    return found and replace(found, channels=tuple(sorted(found.channels)))


@wrong(Labels.renumbered)
def numbers_behind_an_activation_from_zero(right, self, first, positions, run):
    return right(self, 0, positions, run)


@wrong(labels._nearest)
def any_value_is_a_channel(right, values, ordered):
    """A pool that counts its padding, a scaled channel: all keep constants."""
    near, is_near = right(values, ordered)
    return near, torch.ones_like(is_near)


@wrong(labels._line)
def other_axes_not_looked_at(right, value, axis, world):
    is_tensor = value.dim() > 1 and value.numel()
    return right(value.movedim(axis, 0).flatten(1)[:, :1], 0, world) if is_tensor else None


@wrong(labels._repeated)
def channels_in_turn_are_neighbours(right, lines):
    return right(lines) or Positions(min(lines, key=len), repeats=True)


@wrong(search.Network.readers)
def one_reader_is_enough(right, self, node):
    return right(self, node)[:1]


@wrong(search.Network.is_passable)
def maps_pass_element_wise_functions(right, self, node):
    entry = search.entry_of(node)
    return right(self, node) or (entry is not None and entry.kind is Kind.ELEMENTWISE)


@wrong(untangle._Selection._groups)
def copies_as_if_there_were_no_groups(right, self, layer):
    return 1


@wrong(untangle.Untangling._norms_after)
def copies_for_the_norms_in_the_other_order(right, self, layer, norms):
    return right(self, layer, norms)[::-1]


# --- operations ---


@wrong(explicit.signal_of)
def the_gate_takes_all(right, signal, left, other):
    found = right(signal, left, other)
    return None if found is None else 1 - found


@wrong(explicit.Subtract.forward)
def difference_turned(right, self, left, other):
    return right(self, other, left)


@wrong(explicit.BatchNorm.forward)
def functional_norm_without_eps(right, self, input):
    return torch.nn.functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)


@wrong(operations.is_elementwise)
def every_function_is_element_wise(right, function):
    return True


# --- rules for Captum ---


@wrong(base.Rule.divide)
def stabilizer_without_the_sign(right, self, relevance, denominator):
    return (
        right(self, relevance, denominator)
        if callable(self.stabilizer)
        else relevance / (denominator + self.stabilizer)
    )


@wrong(linear_rules.negative)
def negative_part_turned(right, value):
    return -right(value)


@wrong(linear_rules.Term.zeros)
def bias_in_every_term(right, self, zero_params):
    return right(replace(self, bias=True), zero_params)


@wrong(signed.ZPlus.terms)
def positive_inputs_alone(right, self):
    return right(self)[:1]


@wrong(signed.AlphaBeta.factors)
def beta_turned(right, self, outputs, relevance):
    alpha, beta = right(self, outputs, relevance)[1:3]
    return alpha, alpha, -beta, -beta


@wrong(signed.Gamma.factors)
def outputs_below_zero_get_nothing(right, self, outputs, relevance):
    above, _, below, _ = right(self, outputs, relevance)
    return above, above, 0 * below, 0 * below


@wrong(first.ZBox.factors)
def upper_bound_turned(right, self, outputs, relevance):
    factor, low, high = right(self, outputs, relevance)
    return factor, low, -high


@wrong(passing.Pass.propagate)
def every_input_gets_all(right, self, call, inputs, relevance):
    return tuple(relevance.sum_to_size(value.shape) for value in inputs)


# --- arithmetic for zennit ---


@wrong(arithmetic.StackedSum.forward)
def difference_as_a_sum(right, self, left, other):
    return right(self, left, -other if "negative" in self._modules else other)


@wrong(arithmetic.JointOperation._of_vector)
def elements_in_the_other_order(right, module, input, *values):
    return right(module, input.flip(0), *values)


@wrong(arithmetic._OneInput.of)
def relevance_reaches_gates(right, self, input, *others):
    self.others = others
    return self(input)
