"""Wrong variants of which kernel taps lie inside the input, position by position."""

from benchmarks.mutation.mutant import mutants

BORDER = mutants(
    "core/layers/border.py",
    "core/layers/test_border.py core/layers/test_linear_padded.py core/layers/test_linear_geometry.py "
    "core/layers/test_linear_named.py",
    ("no border at the upper end", "return self.low > 0 or self.high > 0", "return self.low > 0"),
    ("no border at the lower end", "return self.low > 0 or self.high > 0", "return self.high > 0"),
    (
        "transposed: no border without padding",
        "return self.kernel > 1 or self.stride > 1 or self.extra > 0 or self.low > 0",
        "return self.low > 0",
    ),
    (
        "transposed: no border where output_padding alone makes one",
        "return self.kernel > 1 or self.stride > 1 or self.extra > 0 or self.low > 0",
        "return self.kernel > 1 or self.stride > 1 or self.low > 0",
    ),
    ("by size: a position less", "last = (-(-size // self.stride) - 1)", "last = (size // self.stride - 1)"),
    ("by size: off by one", "(self.kernel - 1) + 1 - size, 0", "(self.kernel - 1) - size, 0"),
    ("by size: the dilation ignored", "last + self.dilation * (self.kernel - 1)", "last + (self.kernel - 1)"),
    (
        "by size: the odd element in front",
        "return total // 2, total - total // 2",
        "return total - total // 2, total // 2",
    ),
    ("by size: the most that there is for any size", "- self.padding(size)[0]", "- self.low"),
    ("transposed: the padding ignored", "origin = position + self.low", "origin = position"),
    ("transposed: the input longer by one", "(size - 1) * self.stride", "size * self.stride"),
    (
        "no border at the lower end of a transposed layer, at the upper end of others",
        "first <= tap <= last and",
        "first <= tap and",
    ),
    ("transposed: the phase ignored", "origin % self.stride", "0"),
    ("the stride ignored", "origin = position * self.stride -", "origin = position -"),
    ("rounded down at the lower end", "-(origin // self.dilation)", "-origin // self.dilation"),
    ("the dilation ignored at the lower end", "-(origin // self.dilation)", "-origin"),
    ("the input longer by one", "(size - 1 - origin) // self.dilation", "(size - origin) // self.dilation"),
    ("the dilation ignored at the upper end", "(size - 1 - origin) // self.dilation", "(size - 1 - origin)"),
    ("the last tap forgotten", "first <= tap <= last and", "first <= tap < last and"),
    ("the first tap forgotten", "first <= tap <= last and", "first < tap <= last and"),
    ("transposed: the dilation ignored in the phase", "(tap * self.dilation - phase) %", "(tap - phase) %"),
    ("transposed: the phase with the wrong sign", "(tap * self.dilation - phase) %", "(tap * self.dilation + phase) %"),
    ("transposed: every tap in every phase", "(not self.transposed or (tap", "(True or (tap"),
    ("gathered one position off", "geometry.valid_taps(position, size)", "geometry.valid_taps(position + 1, size)"),
    (
        "gathered by the size of the output",
        "geometry.valid_taps(position, size)",
        "geometry.valid_taps(position, output_size)",
    ),
    ("gathered from the other end", "compact.index_select(axis, ", "compact.flip(axis).index_select(axis, "),
    ("added at the lower end alone", "((0, start), (stop, output_size))", "((0, start),)"),
    ("added at the upper end alone", "((0, start), (stop, output_size))", "((stop, output_size),)"),
    (
        "the corners added twice",
        "output.narrow(axis - rest.dim(), start, stop - start), rest.narrow",
        "output, rest.narrow",
    ),
    ("gathered on the first axis alone", "if compact.shape[axis] > 1:", "if compact.shape[axis] > 1 and axis == 1:"),
)
