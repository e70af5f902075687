"""Images: from a file to the model's input, and back to what the model saw."""

import numpy as np
import pytest
import torch
from PIL import Image

from canon_bridge.cli.errors import CommandError
from canon_bridge.cli.images import as_seen, bounds, open_image, to_input, to_square


def test_a_camera_that_was_turned(tmp_path):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (2, 4)


def test_bounds_of_a_transform_that_turns_values_around():
    image = Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8))
    low, high = bounds(lambda image: 1 - 3 * to_square(2)(image), image)
    assert (low.flatten().tolist(), high.flatten().tolist()) == ([-2, -2, -2], [1, 1, 1])


def pixels(*colours):
    """Return a picture of one row."""
    return Image.fromarray(np.array([colours], dtype=np.uint8))


def test_a_square_has_values_from_0_to_1_and_colours_first():
    made = to_input(to_square(2), Image.new("RGB", (5, 3), (255, 51, 0)))
    assert made.shape == (1, 3, 2, 2)
    assert made.dtype == torch.float32
    assert made[0, :, 1, 0].tolist() == pytest.approx([1, 0.2, 0])
    grey = to_input(to_square(1), Image.new("L", (4, 4), 102))
    assert grey.flatten().tolist() == pytest.approx([0.4, 0.4, 0.4])


def normalised(image):
    """Return an input between -2 and 1, and from 10 to 7 in the last channel."""
    values = torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0).double() / 255
    return torch.stack([3 * values[0] - 2, 3 * values[1] - 2, 10 - 3 * values[2]])


def test_what_the_model_saw_is_the_picture_brought_back_from_between_the_bounds():
    image = pixels((0, 128, 255), (30, 255, 0))
    low, high = bounds(normalised, image)
    assert (low.flatten().tolist(), high.flatten().tolist()) == ([-2, -2, 7], [1, 1, 10])
    seen = np.asarray(as_seen(to_input(normalised, image), low, high))
    assert seen.tolist() == [[[0, 128, 0], [30, 255, 255]]]  # a channel that is turned around stays so


def test_one_channel_is_grey_and_what_is_out_of_bounds_is_black_or_white():
    inputs = torch.tensor([[[[-3.0, 0.199, 7.0]]]])
    seen = np.asarray(as_seen(inputs, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)))
    assert seen.tolist() == [[[0, 0, 0], [51, 51, 51], [255, 255, 255]]]
    same = torch.ones(1, 1, 1, 1)
    assert np.asarray(as_seen(inputs[..., :1], same, same)).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (torch.zeros(1, 3, 2, 2), r"a tensor \(1, 3, 2, 2\) of torch\.float32; it has to return one image"),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), r"a tensor \(3, 2, 2\) of torch\.uint8"),
        ([1], "the transform returned list"),
    ],
)
def test_a_transform_that_returns_no_image_is_refused(made, says):
    with pytest.raises(CommandError, match=says):
        to_input(lambda image: made, pixels((0, 0, 0)))


def test_a_file_that_is_no_image_is_refused(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(CommandError, match=r"broken\.png cannot be read as an image: [^\n]+$"):
        open_image(tmp_path / "broken.png")
