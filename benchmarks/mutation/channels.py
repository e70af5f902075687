"""Wrong variants of where channels lie: operations that move, join or divide them, and the search along the flow."""

from benchmarks.mutation.mutant import mutants

PARTS = mutants(
    "core/channels/parts.py",
    "core/test_parts.py core/test_layout.py core/test_rightward_branches.py core/test_leftward.py",
    ("chunks rounded down", "step = -(-width // size) if is_chunk", "step = width // size if is_chunk"),
    ("chunks as splits", "step = -(-width // size) if is_chunk else size", "step = size"),
    ("parts one part off", "sum(sizes[:index])", "sum(sizes[: index + 1])"),
    ("a division of repeated channels", "!= layout.axis or layout.repeats:", "!= layout.axis:"),
    (
        "a division of any dimension",
        "if position(dim, layout.rank) != layout.axis or layout.repeats:",
        "if layout.repeats:",
    ),
    ("the first part always", "return whole[index]", "return whole[0]"),
    ("a slice ignored", "whole.holding(whole.channels[key])", "whole"),
    ("a slice of another axis", "keys[whole.axis] if whole.axis < len(keys)", "keys[-1] if whole.axis < len(keys)"),
    ("concatenation along the channels by default", 'node.kwargs.get("axis", 0)', 'node.kwargs.get("axis", 1)'),
    ("a reader of the shape reads the data", "node.args[0] is not tensor", "False"),
)

SHAPES = mutants(
    "core/channels/shapes.py",
    "core/test_layout.py core/test_through.py core/test_through_entries.py",
    ("flatten: others in front of the channels", "if axis > start:\n", "if False:\n"),
    ("flatten: channels behind it stay", "return layout.moved(axis - merged, rank)", "return layout.moved(axis, rank)"),
    ("flatten: channels are not repeated", "repeats=layout.repeats or not layout.point)", "repeats=layout.repeats)"),
    ("flatten back: channels behind it stay", "(merged if layout.axis > start else 0)", "0"),
    ("mean: over the channels", "if layout.axis in axes:", "if False:"),
    ("mean: channels behind it stay", "before = sum(axis < layout.axis for axis in axes)", "before = 0"),
    ("mean: everything is a point", "point = layout.point or axes >=", "point = True or axes >="),
    ("mean: keepdim ignored", 'if a.get("keepdim"):\n        return replace', "if False:\n        return replace"),
    ("mean back: channels stay", "layout.moved(kept[layout.axis], rank)", "layout.moved(layout.axis, rank)"),
    ("permute: the other way round", "layout.moved(dims.index(layout.axis))", "layout.moved(dims[layout.axis])"),
    ("permute back: the other way round", "layout.moved(dims[layout.axis])", "layout.moved(dims.index(layout.axis))"),
    ("permute: the batch moved to where channels are", "layout.point and dims[0] == 0", "layout.point"),
    ("transpose: one dimension alone", "{one: other, other: one}.get", "{one: other}.get"),
    ("unsqueeze: in front of the channels", "layout.axis + (dim <= layout.axis)", "layout.axis + (dim < layout.axis)"),
    ("unsqueeze: a point with the batch moved", "point=layout.point and dim > 0)", "point=layout.point)"),
    (
        "unsqueeze back: channels stay",
        "layout.axis - (position(dims[0], layout.rank) < layout.axis)",
        "layout.axis",
    ),
    ("squeeze: of any length", "if dims is None or not layout.point:", "if dims is None:"),
    ("squeeze: the batch", "if axes & {0, layout.axis}:", "if axes & {layout.axis}:"),
    ("view: any batch", "if not is_size(sizes[0], x, 0) and not (", "if False and not ("),
    ("view: any number of channels", "if sizes[1] == width or", "if True or"),
    ("the size of another dimension", "if asked is None or asked[1] != dim:", "if asked is None:"),
)

THROUGH = mutants(
    "core/channels/through.py",
    "core/test_through.py core/test_through_entries.py core/test_layout.py core/test_obstacles.py",
    ("average pooling with a divisor of its own", 'if a.get("divisor_override") is not None:', "if False:"),
    ("average pooling that counts its padding", 'pads and a.get("count_include_pad", True)', "False"),
    ("average pooling that pads one axis", "any(padding) if isinstance", "all(padding) if isinstance"),
    ("adaptive pooling of one axis to a point", "one = all(n == 1 for n in size)", "one = any(n == 1 for n in size)"),
    ("interpolation keeps points", "return replace(found, point=False) if", "return found if"),
    ("padding with a constant", 'if a.get("mode", "replicate") == "constant":', "if False:"),
    (
        "padding of the channels",
        "layout.axis >= layout.rank - len(pad) // 2",
        "layout.axis > layout.rank - len(pad) // 2",
    ),
    ("dropout in training", 'if a.get("training") or a.get("train") else', "if False else"),
    (
        "channel shuffle the other way round",
        "channels[group * size + place] for place in range(size) for group in range(groups)",
        "channels[place * groups + group] for group in range(groups) for place in range(size)",
    ),
    ("pools on another dimension than the channels", "if layout.axis != 1 or layout.rank != (", "if layout.rank != ("),
    ("a point that is padded", "point=layout.point and not pads)", "point=layout.point)"),
)

FITTING = mutants(
    "core/planning/fitting.py",
    "core/test_obstacles.py core/test_chains.py core/test_rightward.py core/test_leftward.py core/test_layout.py",
    ("channels repeated without a flatten", "takes % has == 0 if layout.repeats else takes == has", "takes % has == 0"),
    ("Linear on any dimension", "if spatial else layout.is_last", "if spatial else True"),
    ("convolutions of any rank", "layout.axis == 1 and layout.rank == spatial + 2 if", "layout.axis == 1 if"),
)

RIGHTWARD = mutants(
    "core/planning/rightward.py",
    "core/test_rightward.py core/test_rightward_branches.py core/test_reuse.py core/test_obstacles.py "
    "core/test_planning.py core/test_layout.py core/test_activations_pools.py",
    ("other branches taken for the first channel", "else (-1,) * (size or 0)", "else (0,) * (size or 0)"),
    (
        "behind an activation the channels before it",
        "tuple(range(first, first + len(layout.channels)))",
        "layout.channels",
    ),
    (
        "all activations number from the same channel",
        "self.numbers += len(layout.channels) if absorbs else 0",
        "self.numbers += 0",
    ),
    ("a layer called in different ways", "elif reached.layout != layout:", "elif False:"),
    ("a layer called elsewhere", "if len(reached.nodes) != len(self.network.calls(path)):", "if False:"),
    ("an overwritten tensor that is read again", "if network.is_overwritten_behind(node):", "if False:"),
    ("a repeated channel for several slopes", "(layout.repeats and several)", "False"),
    ("pools of another rank", "or wanted_rank(module) not in (None, layout.rank):", "or False:"),
    (
        "a concatenation along another dimension",
        "if position(dim, first.rank) != first.axis or first.axis != 1:",
        "if False:",
    ),
    ("a concatenation of repeated channels", "or any(layout.repeats for layout in known):", "or False:"),
    ("a norm that feeds itself", "operation.path == self.norm.path:", "False:"),
)

LEFTWARD = mutants(
    "core/planning/leftward.py",
    "core/test_leftward.py core/test_reuse.py core/test_obstacles.py core/test_planning.py core/test_layout.py",
    ("other readers ignored", "if any(other is not reader for other in network.readers(node)):", "if False:"),
    ("a layer called elsewhere", "if len(reached.nodes) != len(network.calls(path)):", "if False:"),
    ("a layer called in different ways", "if reached.layout != layout:", "if False:"),
    ("every branch gets the first channels", "            start += size\n", "            start += 0\n"),
    ("a tensor concatenated with itself", "if len(set(parts)) != len(parts):", "if False:"),
    (
        "a concatenation along another dimension",
        "if position(dim, layout.rank) != layout.axis or layout.axis != 1:",
        "if False:",
    ),
)
