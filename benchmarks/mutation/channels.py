"""Wrong variants of what operations are, of what is known of values, of where channels lie, and of the searches."""

from benchmarks.mutation.mutant import mutants

OPERATIONS = mutants(
    "core/operations.py",
    "core/test_operations.py core/test_operations_registered.py core/test_facts.py",
    ("a sum has no relevance", 'Kind.NOT_DIFFERENTIABLE: """argmax', 'Kind.NOT_DIFFERENTIABLE: """sum argmax'),
    ("a ceiling moves elements", '    Kind.MOVEMENT: """view', '    Kind.MOVEMENT: """ceil view'),
    ("a ReLU normalises", 'Kind.NORMALISER: """softmax', 'Kind.NORMALISER: """relu softmax'),
    ("an operator of another library is torch's", 'and str(packet).startswith("aten.")', "and True"),
    ("a method in place overwrites nothing", 'or (name.endswith("_") and not name.endswith("__"))', "or False"),
    ("inplace by keyword overwrites nothing", 'if node.kwargs.get("inplace") is True:', "if False:"),
    ("out overwrites nothing", "    if isinstance(out, fx.Node):\n        return out\n", ""),
    ("what nobody knows is new memory", "return entry is None or entry.kind not in _FRESH", "return False"),
    ("detached is new memory", '*("detach", "numpy",', '*("numpy",'),
    ("positive is new memory", '*("positive", "sum_to_size",', '*("sum_to_size",'),
    ("F.elu for F.elu_", "((torch, _NN, F), name)", "((torch, F), name)"),
    (
        "an apply is not found",
        "    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):\n        return owner\n",
        "",
    ),
    ("one image is enough to be element-wise", "and torch.allclose(result[:1], shorter, rtol=1e-9)", ""),
    ("any order is element-wise", "and torch.allclose(result.flatten()[order], moved.flatten(), rtol=1e-9)", ""),
)

FACTS = mutants(
    "core/facts.py",
    "core/test_facts.py core/test_labels.py core/test_search_right.py core/test_search_branches.py",
    (
        "a comparison carries relevance",
        "(entry is None or entry.kind not in STOPS)\n\n\ndef entry_of",
        "True\n\n\ndef entry_of",
    ),
    ("weights are data", 'node.meta["carries"] = node.op == "placeholder"', 'node.meta["carries"] = True'),
    ("view_as reads values", '["reshape_as", "view_as", "expand_as", "type_as"]', "[]"),
    ("a division is one tensor", '        "chunk",\n', ""),
    ("readers before are later", "if self.order[r] > now > self.order[name]", "if now > self.order[name]"),
    (
        "readers of the result read by a former name",
        "if self.order[r] > now > self.order[name]",
        "if self.order[r] > now",
    ),
    ("a size of one world is known", "return sizes.pop() if len(sizes) == 1 else None", "return sizes.pop()"),
    ("all worlds have the same sizes", "return 1, next(self._fresh), next(self._fresh)", "return 7, 7, 7"),
    (
        "a convolution keeps the channels",
        "_meta((tensor.shape[0], channels, *(size[w]",
        "_meta((tensor.shape[0], tensor.shape[1], *(size[w]",
    ),
    ("values tell all sizes", "[self._new() if axis != 1 else (length,) * 3 for", "[(length,) * 3 for"),
)

LABELS = mutants(
    "core/labels.py",
    "core/test_labels.py core/test_search_left.py core/test_search_right.py",
    (
        "each world has the same numbers",
        "generator = torch.Generator().manual_seed(world)",
        "generator = torch.Generator().manual_seed(0)",
    ),
    ("other axes are not looked at", "if not bool(((rows - first[:, None]).abs() <= _ACCURACY).all()):", "if False:"),
    ("any value is a number", "if bool(is_near.all()) else None", ""),
    ("one world is enough", "if len(set(lines)) == 1:", "if True:"),
    ("one size is enough", "_LEAST_WORLDS: Final = 2", "_LEAST_WORLDS: Final = 0"),
    ("channels repeated without a flatten", "if self.repeats else width == len(self.channels)", ""),
    ("repetitions of several lengths", "if rest or line != tuple(", "if rest or False and line != tuple("),
    (
        "new numbers from zero",
        "numbers = tuple(range(first, first + len(positions.channels)))",
        "numbers = tuple(range(len(positions.channels)))",
    ),
    ("memory that cannot be viewed", ".expand(self.shape(world)).contiguous()", ".expand(self.shape(world))"),
)

SEARCH = mutants(
    "core/search.py",
    "core/test_search_chains.py core/test_obstacles.py core/test_search_right.py core/test_search_branches.py "
    "core/test_search_left.py core/test_rewrite_reuse.py core/test_planner.py core/test_rewrite_norms.py",
    ("layers that are called elsewhere", "if len(reached.nodes) != len(self.network.calls(path)):", "if False:"),
    (
        "sums are passed",
        "_PASSABLE = frozenset({Kind.MOVEMENT, Kind.LINEAR})",
        "_PASSABLE = frozenset({Kind.MOVEMENT, Kind.LINEAR, Kind.SUM})",
    ),
    (
        "element-wise functions are passed",
        "_PASSABLE = frozenset({Kind.MOVEMENT, Kind.LINEAR})",
        "_PASSABLE = frozenset({Kind.MOVEMENT, Kind.LINEAR, Kind.NORMALISER})",
    ),
    ("an overwritten tensor that is read again", "and network.aliases.read_after(node):", "and False:"),
    ("several slopes for repeated channels", "or (positions.repeats and several):", ":"),
    (
        "activations number from the same channel",
        "self.numbers += 0 if known else len(positions.channels)",
        "self.numbers += 0",
    ),
    ("any width fits", "if not positions.fits(takes):", "if False:"),
    ("a norm is found before a layer", 'raise Blocked("{} after it is a norm", name_of(operation))', "pass"),
    ("other readers ignored", "if any(other is not reader for other in network.readers(node)):", "if False:"),
    (
        "a channel that comes to several",
        "if positions.repeats or len(set(positions.channels)) != len(positions.channels):",
        "if False:",
    ),
    (
        "every branch has the first channels",
        "self.labels[node] = Labels.start(numbers, rank",
        "self.labels[node] = Labels.start(range(len(numbers)), rank",
    ),
    ("Linear on axis one", "rank - 1 if is_last else 1, rank)", "1, rank)"),
    ("others are as wide as the norm", "        shape[dim] = size\n", ""),
    (
        "unknown sizes are one",
        '            raise Mixed("it depends on a size that is not known")\n',
        "            return 1\n",
    ),
    ("parameters that a forward reads", "if operation.path in self.read_elsewhere:", "if False:"),
)

UNTANGLE = mutants(
    "core/untangle.py",
    "core/test_untangle.py",
    ("every norm has the first copy", "self.readers[source].index(self.node) if source in steps else 0", "0"),
    ("groups do not matter", "(self._groups(source) if source in steps else 1)", "1"),
    ("readers of sizes ignored", "if not readers or len(readers) != len(node.users):", "if not readers:"),
    ("a channel that comes to several", "or len(set(found)) != len(found) or", "or"),
    ("the rest is as it was", "                    rest.append(channel)", "                    continue"),
    ("what is to be kept is made linear", "if before.others and not with_rest:", "if False:"),
)
