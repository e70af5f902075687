"""That the coverage benchmark sees what is wrong: the function, a BatchNorm that lives on, what is not restored."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from benchmarks import coverage, report
from canon_bridge import canonize
from tests.support.alive import witness
from tests.support.measure import measure, run
from tests.support.models import images, small_densenet
from tests.support.row import Row
from tests.support.statistics import randomize_called


def _small(*layers: nn.Module) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), *layers).double().eval()
    inputs = (torch.randn(2, 3, 8, 8, dtype=torch.float64),)
    randomize_called(model, inputs)
    return model, inputs


class _Wrapped:
    """A canonization with something wrong about it."""

    def __init__(self, model, on_enter=lambda model: None, on_exit=lambda model: None, **options):
        self.model, self.on_enter, self.on_exit, self.options = model, on_enter, on_exit, options
        self.block = canonize(model, **options)
        self.plan = self.block.plan

    def __enter__(self):
        self.undo = self.on_enter(self.model)
        return self.block.__enter__()

    def __exit__(self, *error):
        self.block.__exit__(*error)
        if self.undo is not None:
            self.undo()
        self.on_exit(self.model)


def test_a_right_canonization_is_ok():
    model, inputs = _small(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    row = measure(model, inputs)
    assert (row.status, row.left, row.right, row.leftover, row.alive, row.restored) == ("ok", 1, 0, 0, 0, True)
    assert row.error < 1e-14
    assert row.entry > 0


def test_a_forgotten_eps_is_seen():
    def forget(model):
        norm = model.get_submodule("1")
        eps, norm.eps = norm.eps, 0.0
        return lambda: setattr(norm, "eps", eps)

    model, inputs = _small(nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    row = measure(model, inputs, canonize=lambda model, **options: _Wrapped(model, on_enter=forget, **options))
    assert row.error > 1e-4
    assert row.restored
    assert row.status == "wrong"


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((8,), 0.1))
        self.register_buffer("variance", torch.ones(8))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.variance, eps=0.0)


class _Standardized(nn.Conv2d):
    """Weight standardization as in timm: a batch norm of the weight, no normalization of data."""

    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight))


def _silent() -> nn.Module:
    """Return a norm that scales, but whose scale nobody can see on data that is zero."""
    norm = nn.BatchNorm2d(8)
    norm.weight.data.fill_(2)
    return nn.Sequential(nn.Threshold(1e9, 0.0), norm)


@pytest.mark.parametrize(
    ("layers", "paths", "functional"),
    [
        ((nn.BatchNorm2d(8),), ["1"], 0),
        ((nn.Tanh(), FrozenBatchNorm2d(8)), ["2"], 0),
        ((nn.BatchNorm2d(8, eps=0.0),), [], 0),  # the identity
        ((FrozenBatchNorm2d(8, eps=0.0),), [], 0),
        ((nn.BatchNorm2d(8), nn.BatchNorm2d(8, eps=0.0)), ["1"], 0),
        ((_silent(),), ["1.1"], 0),
        ((_Functional(),), [], 1),
        ((_Standardized(8, 8, 1),), [], 0),
        ((nn.InstanceNorm2d(8), nn.BatchNorm2d(8)), ["2"], 0),
        ((nn.InstanceNorm2d(8), _Functional()), [], 1),
    ],
)
def test_who_is_alive(layers, paths, functional):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *layers).double().eval()
    seen = witness(model, (torch.randn(2, 3, 8, 8, dtype=torch.float64),))
    assert (seen.alive, seen.functional) == (paths, functional)


def test_a_norm_that_is_called_no_more_is_alive():
    model = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3))  # in the place of a norm
    inputs = (torch.randn(2, 3, 4, 4),)
    assert witness(model, inputs, ["0"]).count == 0
    model.forward = lambda x: F.relu(x)
    assert witness(model, inputs, ["0"]).bypassed == ["0"]


def test_timm_norms_carry_their_activation_along():
    layers = pytest.importorskip("timm.layers")
    for eps, alive in ((0.0, []), (1e-3, ["0", "1"])):
        norms = layers.BatchNormAct2d(3, eps=eps), layers.FrozenBatchNormAct2d(3, eps=eps)
        model = nn.Sequential(*norms).double().eval()
        assert witness(model, (torch.randn(2, 3, 8, 8, dtype=torch.float64),)).alive == alive


def test_a_norm_that_is_kept_is_alive():
    model, inputs = _small(nn.Tanh(), nn.BatchNorm2d(8), nn.Softmax(1), nn.Conv2d(8, 4, 1))
    row = measure(model, inputs, leftover="keep")
    assert (row.alive, row.alive_paths, row.status) == (1, ["2"], "alive")
    row = measure(model, inputs)
    assert (row.alive, row.leftover, row.status) == (0, 1, "leftover")


def _one_bit(model):
    bits = model.get_submodule("3").weight.data.view(torch.int64)
    bits[0, 0] ^= 1


def _new_parameter(model):
    conv = model.get_submodule("3")
    conv.weight = nn.Parameter(conv.weight.detach())


def _new_storage(model):
    conv = model.get_submodule("3")
    conv.weight.data = conv.weight.data.clone()


def _key_order(model):
    children = vars(model)["_modules"]
    children["0"] = children.pop("0")


def _another_class(model):
    model.get_submodule("2").__class__ = nn.LeakyReLU


CHANGES = {
    "one bit": _one_bit,
    "a parameter object": _new_parameter,
    "a storage": _new_storage,
    "the order of keys": _key_order,
    "a class": _another_class,
    "a module": lambda model: setattr(model, "2", nn.ReLU()),
    "a hook": lambda model: model.get_submodule("2").register_forward_hook(lambda *_: None),
    "an attribute": lambda model: setattr(model.get_submodule("2"), "left_behind", 1),
    "a flag": lambda model: setattr(model.get_submodule("2"), "inplace", True),
    "a buffer": lambda model: model.get_submodule("1").running_var.mul_(2),
    "requires_grad": lambda model: model.get_submodule("3").weight.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_not_restored_is_seen(change):
    model, inputs = _small(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    canonizing = {"canonize": lambda model, **options: _Wrapped(model, on_exit=change, **options)}
    row = measure(model, inputs, **canonizing, rounds=0)
    assert row.restored is False
    assert "not restored" in row.status
    assert row.differences


def test_an_error_is_a_row():
    def fail(model, **options):
        raise RuntimeError("first line\nsecond line")

    model, inputs = _small(nn.BatchNorm2d(8))
    row = measure(model, inputs, canonize=fail)
    assert (row.status, row.reason, row.restored) == ("failed", "RuntimeError: first line", True)


def test_random_statistics_can_be_seen():
    model, inputs = _small(nn.BatchNorm2d(8), nn.Tanh(), FrozenBatchNorm2d(8))
    for norm in (model[1], model[3]):
        assert norm.eps == 0.01
        assert norm.weight[0] == 0
        assert 0 < norm.weight[-1] < 1e-19
        assert {float(sign) for sign in norm.weight.detach()[1:-1].sign()} == {-1.0, 1.0}
        assert bool((norm.running_mean != 0).all())
        assert bool((norm.bias != 0).all())
        assert 0.5 <= float(norm.running_var.min()) <= float(norm.running_var.max()) <= 1.5
    assert all(bool(output.isfinite().all()) for output in run(model, inputs))


def test_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(coverage, "run", lambda tasks, processes: map(coverage.work, tasks))
    threads = torch.get_num_threads()
    files = tmp_path / "rows.json", tmp_path / "table.md"
    options = ["--timm", "none", "--models", "mnasnet0_5", "alexnet", "mnasnet1_3", "--prefer", "both"]
    options += ["--max-parameters", "3e6"]
    try:
        assert coverage.main([*options, "--json", str(files[0]), "--markdown", str(files[1])]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "million parameters (--max-parameters)" in printed
    assert "left out because they have no BatchNorm: 1 models" in printed
    assert "| `torchvision/mnasnet0_5` | right | 52 |" in files[1].read_text()
    assert '"no_batch_norm": 1' in files[0].read_text()
    with pytest.raises(SystemExit, match="no model"):
        coverage.main(["--timm", "none", "--models", "no such model"])


def test_reports_say_what_is_wrong():
    rows = [Row("a", "left", error=1.0, restored=True, status="wrong", reasons={"why": 2}), Row("b", "left")]
    text = report.markdown(rows, "command")
    assert "largest function error: 1.0e+00 (a, left)" in text
    assert "| 2 | why | a |" in text


@pytest.mark.zennit
def test_the_pages_of_parity_and_audit(monkeypatch, tmp_path):
    parity = pytest.importorskip("benchmarks.parity")
    monkeypatch.setattr(parity, "build", lambda name: (small_densenet(), images()))
    monkeypatch.setattr(parity, "PRESETS", {key: parity.PRESETS[key] for key in ("epsilon_plus_flat",)})
    page = parity.parity_page(("resnet18",))
    assert "| resnet18 | epsilon_plus_flat | " in page
    assert "Where they cannot agree" in page
    worst = [parity.difference(small_densenet(), images(), "epsilon_plus_flat", *keys) for keys in parity.SETTINGS]
    assert max(worst) < 1e-12
    audited = parity.audit_page(tmp_path / "audit.png")
    assert (tmp_path / "audit_before.png").is_file()
    assert (tmp_path / "audit_after.png").is_file()
    assert audited.count("defect: ") == len(parity.AUDITS)
