"""Wrong variants of what is read from a BatchNorm, of the identity that it becomes, and of composed maps."""

from benchmarks.mutation.mutant import mutants

AFFINE = mutants(
    "core/affine.py",
    "core/test_affine.py core/test_norms.py core/test_search_branches.py",
    ("merged in half precision", "return dtype if dtype.itemsize >= 4 else torch.float32", "return dtype"),
    (
        "repeated channels interleaved",
        "Affine(self.scale.repeat_interleave(times), self.shift.repeat_interleave(times))",
        "Affine(self.scale.repeat(times), self.shift.repeat(times))",
    ),
    (
        "composed in the other order",
        "self.scale * before.shift + self.shift)",
        "before.scale * self.shift + before.shift)",
    ),
    ("the inner shift not scaled", "self.scale * before.shift + self.shift)", "before.shift + self.shift)"),
    ("the outer shift forgotten", "self.scale * before.shift + self.shift)", "self.scale * before.shift)"),
    ("joined in the other order", "torch.cat([self.scale, other.scale])", "torch.cat([other.scale, self.scale])"),
    ("channels that stay are scaled", "torch.where(stays, one, self.scale[chosen])", "self.scale[chosen]"),
    (
        "channels that stay are shifted",
        "torch.where(stays, zero, self.shift[chosen].to(zero.dtype))",
        "self.shift[chosen].to(zero.dtype)",
    ),
    ("channels in order of their numbers", "index.clamp(min=0), index < 0", "index.sort()[0].clamp(min=0), index < 0"),
)

NORMS = mutants(
    "core/norms.py",
    "core/test_norms.py core/test_apply.py core/test_norms_of_packages.py core/test_canonize.py "
    "core/test_search_branches.py core/test_rewrite_reuse.py",
    ("eps forgotten", "(variance.to(dtype) + float(module.eps)).rsqrt()", "variance.to(dtype).rsqrt()"),
    (
        "eps added to the standard deviation",
        "(variance.to(dtype) + float(module.eps)).rsqrt()",
        "(variance.to(dtype).sqrt() + float(module.eps)).reciprocal()",
    ),
    (
        "the root forgotten",
        "(variance.to(dtype) + float(module.eps)).rsqrt()",
        "(variance.to(dtype) + float(module.eps)).reciprocal()",
    ),
    ("the weight ignored", "return weight.to(dtype) * scale if", "return scale.clone() if"),
    ("the sign of the weight ignored", "return weight.to(dtype) * scale", "return weight.to(dtype).abs() * scale"),
    ("the mean forgotten", "shift = -scale * mean.to(scale.dtype)", "shift = torch.zeros_like(scale)"),
    ("the mean with the wrong sign", "shift = -scale * mean.to(scale.dtype)", "shift = scale * mean.to(scale.dtype)"),
    ("the mean not scaled", "shift = -scale * mean.to(scale.dtype)", "shift = -mean.to(scale.dtype)"),
    ("the bias ignored", "shift = bias.to(scale.dtype) + shift", "shift = shift.clone()"),
    ("the bias instead of the shift", "shift = bias.to(scale.dtype) + shift", "shift = bias.to(scale.dtype)"),
    ("the bias scaled", "shift = bias.to(scale.dtype) + shift", "shift = bias.to(scale.dtype) * scale + shift"),
    ("the bias with the wrong sign", "shift = bias.to(scale.dtype) + shift", "shift = shift - bias.to(scale.dtype)"),
    ("the identity keeps its eps", '        "eps": 0.0,\n', ""),
    ("the identity keeps its mean", '        "running_mean": torch.zeros_like(mean),\n', ""),
    ("the identity keeps its variance", '        "running_var": torch.ones_like(variance),\n', ""),
    (
        "the identity keeps its weight",
        '(("weight", affine.scale, 1), ("bias", affine.shift, 0))',
        '(("bias", affine.shift, 0),)',
    ),
    (
        "the identity keeps its bias",
        '(("weight", affine.scale, 1), ("bias", affine.shift, 0))',
        '(("weight", affine.scale, 1),)',
    ),
    (
        "a map written without its scale",
        "write(edits, norm, own.after(affine)",
        "write(edits, norm, own.after(Affine.identity(own.scale))",
    ),
    ("a map that is not written", "bool((value == neutral).all())", "True"),
    ("normalized with the wrong sign", ").view(shape) + affine.shift", ").view(shape) - affine.shift"),
    ("a shift taken for the identity", "or not bool((affine.shift == 0).all())", "or False"),
    ("a scale taken for the identity", "not bool((affine.scale == 1).all()) or", "False or"),
    ("an eps that rounding hides taken for the identity", "return bool(present == wanted)", "return True"),
    (
        "two norms composed as if after",
        "own.after(affine) if comes_before else affine.after(own)",
        "affine.after(own)",
    ),
    (
        "two norms composed as if before",
        "own.after(affine) if comes_before else affine.after(own)",
        "own.after(affine)",
    ),
    (
        "the norm lives on",
        "neutral = write(edits, norm, Affine.identity",
        "neutral = entry.write(norm, Affine.identity",
    ),
    ("a leftover without sign", "weight.view(-1, 1, 1, 1)", "weight.abs().view(-1, 1, 1, 1)"),
)

MERGED = mutants(
    "core/norms.py",
    "core/test_norms_merged.py",
    ("a merged norm that was changed counts as the identity", "and torch.equal(present, value.to(present))", ""),
    ("a merged norm hands out its input", "return torch._lazy_clone(input)", "return input.view_as(input)"),
    ("a merged norm takes other numbers of channels", "or input.shape[1] != self.width", ""),
    (
        "a merged norm takes other numbers of dimensions",
        "if input.dim() not in self.ranks or input.shape",
        "if input.shape",
    ),
    ("a merged norm in training mode", "if norm.training and not merged.frozen:", "if False:"),
    ("a merged norm without gradients", "if not torch.is_grad_enabled() and is_eager(input)", "if is_eager(input)"),
)

MERGE = mutants(
    "core/apply.py",
    "core/test_apply.py core/test_search_right.py core/test_search_branches.py core/test_rewrite_reuse.py "
    "core/test_norms_of_packages.py core/test_canonize.py",
    (
        "every layer gets all channels in order",
        "affine.select(step.channels)",
        "affine.select(range(len(step.channels)))",
    ),
    ("the map behind an activation lost", "affine = affine.joined(absorb(", "affine = affine.joined(affine); (absorb("),
    ("folded on the other side", 'elif chain.direction == "right":', 'elif chain.direction == "left":'),
    ("a leftover without shift", "weight, bias, groups=weight.shape[0])", "weight, None, groups=weight.shape[0])"),
)
