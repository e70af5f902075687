"""Which output is explained: targets of every kind, and what is said of those that select no single value."""

import numpy as np
import pytest
import torch

from canon_bridge.auditing.target import select

OUTPUT = torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("target", "values"),
    [
        ((1, 2), [6, 18]),
        ([(0, 1), (2, 3)], [1, 23]),
        (torch.tensor([[0, 1], [2, 3]]), [1, 23]),
    ],
)
def test_targets_of_outputs_with_more_dimensions(target, values):
    assert select(OUTPUT, target).tolist() == values


@pytest.mark.parametrize(
    "target", [2, torch.tensor(2), torch.tensor([2]), np.int64(2), (2,), [2, 2], torch.tensor([2, 2])]
)
def test_targets_of_vectors(target):
    assert select(OUTPUT[:, 0], target).tolist() == [2, 14]


@pytest.mark.parametrize("target", [None, 1, 9, (0, 9), (0, 1, 2), [0, 1, 2], "cat", [(0, 1)], 0.0, torch.tensor(0.0)])
def test_a_target_that_selects_no_single_value(target):
    with pytest.raises(ValueError, match=r"does not select one value for each example.*\(2, 3, 4\)"):
        select(OUTPUT, target)


def test_one_value_an_example_needs_no_target():
    assert select(OUTPUT[:, :1, 0], None).tolist() == [0, 12]
    assert select(OUTPUT[:, 0, 0], None).tolist() == [0, 12]
    assert select(OUTPUT[0, 0, 1], None).tolist() == [1]


def test_a_model_that_returns_several_things():
    with pytest.raises(TypeError, match=r"returns a tuple.*wrap the model"):
        select((OUTPUT, OUTPUT), 1)
    with pytest.raises(TypeError, match=r"returns a dict.*\['scores'\]"):
        select({"scores": OUTPUT}, 1)
