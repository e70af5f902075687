"""Maps as pictures: red for, blue against, white at zero, whatever the shape."""

import numpy as np
import pytest
import torch
from PIL import Image

from canon_bridge.heatmaps import colour_limit, heatmap, overlay


def test_red_speaks_for_the_class_and_blue_against_it():
    picture = np.asarray(heatmap(torch.tensor([[1.0, 0.0, -1.0]]))).astype(int)
    (red, white, blue), *_ = picture
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert white.tolist() == [255, 255, 255]


@pytest.mark.parametrize(("shape", "size"), [((4, 6), (6, 4)), ((3, 4, 6), (6, 4)), ((2, 3, 4, 6), (12, 4))])
@pytest.mark.parametrize("as_array", [False, True])
def test_shapes(shape, size, as_array):
    relevance = torch.randn(*shape, dtype=torch.float64, requires_grad=not as_array)
    values = relevance.numpy() if as_array else relevance
    picture = heatmap(values)
    assert picture.size == size
    if len(shape) == 4:
        whole = np.asarray(picture)
        limit = colour_limit(values)
        assert (whole[:, 6:] == np.asarray(heatmap(values[1], limit))).all()


def test_another_number_of_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"shape \(5,\); a heat map wants"):
        heatmap(torch.zeros(5))


@pytest.mark.parametrize("draw", [heatmap, lambda *values: overlay(Image.new("RGB", (3, 2)), *values)])
@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((torch.tensor([[1.0, float("nan"), 2.0]] * 2),), "2 values that are NaN or infinite, of 6"),
        ((torch.full((1, 2, 3), float("inf")),), "6 values that are NaN or infinite"),
        ((torch.zeros(0, 3, 2, 3),), r"shape \(0, 3, 2, 3\) and no values"),
        ((torch.ones(2, 3), 0.0), "limit is 0.0; colours end above zero"),
    ],
)
def test_what_has_no_colour_is_refused(draw, values, says):
    with pytest.raises(ValueError, match=says):
        draw(*values)


@pytest.mark.parametrize("shape", [(2, 2), (2, 3, 2, 3)])
def test_an_overlay_on_a_picture_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=rf"3 by 2 pixels, and the map {shape[-1] * (len(shape) - 2 or 1)} by 2"):
        overlay(Image.new("RGB", (3, 2)), torch.ones(shape))


def test_one_pixel_does_not_leave_the_rest_pale():
    relevance = torch.ones(100, 100)
    relevance[0, 0] = 1e6
    assert colour_limit(relevance) == 1
    assert colour_limit(torch.zeros(3, 3)) == 1


def test_an_overlay_shows_the_picture_where_nothing_is_relevant():
    picture = Image.new("RGB", (2, 1), "black")
    shown = np.asarray(overlay(picture, torch.tensor([[0.0, 1.0]]))).astype(int)
    assert shown[0, 0].tolist() == [128, 128, 128]
    assert shown[0, 1, 0] > shown[0, 1, 2]
