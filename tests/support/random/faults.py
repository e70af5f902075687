"""Faults in the core that the checks on random networks must find."""

from dataclasses import replace

import torch
from torch import nn

from canon_bridge.core import activations, norms
from canon_bridge.core.affine import Affine
from canon_bridge.core.layers import linear
from canon_bridge.core.restore import _Layer

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def no_eps(monkeypatch):
    def read(module):
        right = norms.NORMS[nn.SyncBatchNorm].read(module)
        scale = right.scale * (module.running_var + module.eps).sqrt() / module.running_var.sqrt()
        return Affine(scale, right.shift)

    for kind in _NORMS:
        monkeypatch.setitem(norms.NORMS, kind, replace(norms.NORMS[kind], read=read))


def eps_stays_in_the_norm(monkeypatch):
    write = norms.NORMS[nn.BatchNorm2d].write

    def without_eps(module, affine):
        return {name: value for name, value in write(module, affine).items() if name != "eps"}

    for kind in _NORMS:
        monkeypatch.setitem(norms.NORMS, kind, replace(norms.NORMS[kind], write=without_eps))


def no_border(monkeypatch):
    geometries = linear.axis_geometries
    without = lambda module: tuple(replace(g, low=0, high=0) for g in geometries(module))  # noqa: E731
    monkeypatch.setattr(linear, "axis_geometries", without)


def no_offset_in_concatenations(monkeypatch):
    select = Affine.select
    monkeypatch.setattr(
        Affine,
        "select",
        lambda self, channels: select(self, [min(n, i % self.scale.numel()) for i, n in enumerate(channels)]),
    )


def only_maxima(monkeypatch):
    monkeypatch.setattr(activations, "_signed_pool", lambda module, x: type(module).forward(module, x))


def plain_relu(monkeypatch):
    monkeypatch.setattr(activations, "_thresholded_relu", lambda module, x: x.relu())


def no_offset_in_activations(monkeypatch):
    before = activations._before

    def without_shift(module, x):
        return before(module, x) - activations._buffer(module, "act_shift", x)

    monkeypatch.setattr(activations, "_before", without_shift)


def not_restored(monkeypatch):
    put_back = _Layer._put_back
    wrong = lambda layer, slot, old, layers: None if slot[1] == "eps" else put_back(layer, slot, old, layers)  # noqa: E731
    monkeypatch.setattr(_Layer, "_put_back", wrong)


def nothing_merged_into_biases(monkeypatch):
    write = linear._write
    monkeypatch.setattr(
        linear, "_write", lambda e, module, weight, bias: write(e, module, weight, torch.zeros_like(bias))
    )


FAULTS = (
    *(no_eps, eps_stays_in_the_norm, no_border, no_offset_in_concatenations, only_maxima, plain_relu),
    *(no_offset_in_activations, not_restored, nothing_merged_into_biases),
)
