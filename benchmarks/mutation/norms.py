"""Wrong variants of what is read from a BatchNorm, of the identity that it becomes, and of composed maps."""

from benchmarks.mutation.mutant import mutants

AFFINE = mutants(
    "core/modules/affine.py",
    "core/test_affine.py core/test_affine_maps.py core/test_canonize.py core/test_rightward_branches.py",
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
    ("the weight ignored", "scale = weight.to(dtype) * scale", "scale = scale.clone()"),
    ("the sign of the weight ignored", "scale = weight.to(dtype) * scale", "scale = weight.to(dtype).abs() * scale"),
    ("the mean forgotten", "shift = -scale * mean.to(dtype)", "shift = torch.zeros_like(scale)"),
    ("the mean with the wrong sign", "shift = -scale * mean.to(dtype)", "shift = scale * mean.to(dtype)"),
    ("the mean not scaled", "shift = -scale * mean.to(dtype)", "shift = -mean.to(dtype)"),
    ("the bias ignored", "shift = bias.to(dtype) + shift", "shift = shift.clone()"),
    ("the bias instead of the shift", "shift = bias.to(dtype) + shift", "shift = bias.to(dtype)"),
    ("the bias scaled", "shift = bias.to(dtype) + shift", "shift = bias.to(dtype) * scale + shift"),
    ("the bias with the wrong sign", "shift = bias.to(dtype) + shift", "shift = shift - bias.to(dtype)"),
    ("merged in half precision", "return torch.promote_types(dtype, torch.float32)", "return dtype"),
    ("the identity keeps its eps", '{("__dict__", "eps"): 0.0}', "{}"),
    ("the identity keeps its mean", '(("running_mean", 0.0), ("running_var", 1.0), ', '(("running_var", 1.0), '),
    ("the identity keeps its variance", '("running_var", 1.0), ("weight", 1.0)', '("weight", 1.0)'),
    ("the identity keeps its weight", '("weight", 1.0), ("bias", 0.0)):', '("bias", 0.0)):'),
    ("the identity keeps its bias", '("weight", 1.0), ("bias", 0.0)):', '("weight", 1.0)):'),
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
    ("normalized with the wrong sign", ").view(shape) + affine.shift", ").view(shape) - affine.shift"),
    (
        "a shift taken for the identity",
        "bool((affine.scale == 1).all()) and bool((affine.shift == 0).all())",
        "bool((affine.scale == 1).all())",
    ),
    (
        "a scale taken for the identity",
        "bool((affine.scale == 1).all()) and bool((affine.shift == 0).all())",
        "bool((affine.shift == 0).all())",
    ),
)

MERGE = mutants(
    "core/merge.py",
    "core/test_merge.py core/test_rightward.py core/test_rightward_branches.py core/test_reuse.py "
    "core/test_norms_of_packages.py core/test_canonize.py",
    (
        "every layer gets all channels in order",
        "affine.select(step.channels)",
        "affine.select(range(len(step.channels)))",
    ),
    ("the map behind an activation lost", "affine = affine.joined(absorb(", "affine = affine.joined(affine); (absorb("),
    (
        "two norms composed as if behind",
        "own.after(affine) if comes_before else affine.after(own)",
        "affine.after(own)",
    ),
    (
        "two norms composed as if before",
        "own.after(affine) if comes_before else affine.after(own)",
        "own.after(affine)",
    ),
    ("two norms composed without the other shift", '("bias", whole.shift)', '("bias", own.shift)'),
    ("two norms composed without the other scale", '("weight", whole.scale)', '("weight", own.scale)'),
    ("folded on the other side", 'elif chain.direction == "right":', 'elif chain.direction == "left":'),
    ("the norm lives on", "in entry.identity(norm).items()", "in dict[tuple[str, str], object]().items()"),
    ("a leftover without sign", "weight = affine.scale.to(old.dtype)", "weight = affine.scale.abs().to(old.dtype)"),
    ("a leftover without shift", "weight, bias, groups=weight.shape[0])", "weight, None, groups=weight.shape[0])"),
)
