"""Wrong variants of where channels lie: numbers on their way through operations, and the search along the flow."""

from benchmarks.mutation.mutant import mutants

LABELS = mutants(
    "core/labels.py",
    "core/test_labels.py core/test_rightward_branches.py core/test_leftward.py core/test_chains.py",
    ("one world is enough", "_LEAST_WORLDS: Final = 2", "_LEAST_WORLDS: Final = 0"),
    ("repeated channels need not divide", "width % len(self.channels) == 0 if", "width > 0 if"),
    (
        "what differs along another axis",
        "if not bool(((rows - first[:, None]).abs() <= _ACCURACY).all()):",
        "if False:",
    ),
    ("what is no channel", "if not bool(((codes[near] - first).abs() <= 2 * _ACCURACY).all()):", "if False:"),
    ("channels lie on every axis", "if axis % self.rank == self.axis:", "if True:"),
    ("lines of different worlds taken for the first", "if len(set(lines)) == 1:", "if lines:"),
    (
        "numbers after an activation from zero",
        "range(first, first + len(positions.channels))",
        "range(len(positions.channels))",
    ),
    ("dimensions of the first world", "return ranks.pop() if len(ranks) == 1 else None", "return ranks.pop()"),
)

SEARCH = mutants(
    "core/search.py",
    "core/test_rightward.py core/test_rightward_branches.py core/test_leftward.py core/test_reuse.py core/test_chains.py "
    "core/test_obstacles.py core/test_planning.py core/test_activations_pools.py operations/test_function.py",
    ("a norm that feeds itself", "if operation is not None and operation.path == self.norm.path:", "if False:"),
    ("a layer called elsewhere", "if len(reached.nodes) != len(self.network.calls(path)):", "if False:"),
    (
        "a layer called in different ways",
        "if (reached.step, reached.repeats) != (step, positions.repeats):",
        "if False:",
    ),
    (
        "an overwritten tensor that is read again",
        "if network.aliases.overwritten(node) is not None and network.aliases.read_after(node):",
        "if False:",
    ),
    ("other readers ignored", "if any(other is not reader for other in network.readers(node)):", "if False:"),
    ("other branches taken for the first channel", "return encode((OUTSIDE,)", "return encode((0,)"),
    ("layers of any width", "if not positions.fits(takes):", "if False:"),
    ("convolutions of any rank", "fits = rank == spatial + 2 if spatial else rank is not None", "fits = True"),
    ("Linear on any dimension", "labels.along(1 if spatial or is_norm(module) else -1)", "labels.along(1)"),
    (
        "a repeated channel for several slopes",
        "if positions is None or (positions.repeats and several):",
        "if positions is None:",
    ),
    (
        "all activations number from the same channel",
        "self.numbers += 0 if known else len(positions.channels)",
        "self.numbers += 0",
    ),
    (
        "every branch gets the first channels",
        "place.get(number, OUTSIDE) for number in numbers",
        "place.get(number - count, OUTSIDE) for number in numbers",
    ),
    (
        "a channel that comes to several",
        "if positions.repeats or len(set(positions.channels)) != len(positions.channels):",
        "if positions.repeats:",
    ),
    (
        "a layer of another width",
        "if len(positions.channels) != self.width or OUTSIDE in positions.channels:",
        "if False:",
    ),
    ("functions of any kind pass", "return entry is not None and entry.kind in _PASSABLE", "return entry is not None"),
    ("joined along a dimension of unknown width", "shape[dim] = size", "shape[dim] = like.shape[dim]"),
)

FACTS = mutants(
    "core/facts.py",
    "core/test_graph.py core/test_rightward_branches.py core/test_leftward.py operations/test_function.py "
    "operations/test_relevance.py",
    ("sizes of the first world are known", "return sizes.pop() if len(sizes) == 1 else None", "return sizes.pop()"),
    ("memory is never shared", "if not may_share(entry, node):", "if True:"),
    ("readers before and after", "if self.order[r] > now > self.order[name] and", "if self.order[r] > now and"),
    (
        "the widest of two sizes is not looked for",
        "known = [size for size in found if len(set(size)) == 1]",
        "known = []",
    ),
)
