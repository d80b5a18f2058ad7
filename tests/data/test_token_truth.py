"""The truth on the tokens' grid."""

import numpy as np
import pytest

from seedx_lite.data.token_truth import COLOUR_CLASSES, KIND_CLASSES, PART_CLASSES, POSE_CLASSES, token_truth
from seedx_lite.world.scene import sample_scene


@pytest.fixture(scope="module")
def truth():
    return token_truth("train", 24, "narrow", (64, 64), 16, processes=1)


def test_shapes_and_classes(truth):
    pictures, maps = truth
    assert pictures.shape == (24, 64, 64, 3) and maps.box.shape == (24, 256, 4)
    for name, classes in (
        ("kind", KIND_CLASSES), ("colour", COLOUR_CLASSES), ("part", PART_CLASSES), ("pose", POSE_CLASSES)
    ):  # fmt: skip
        found = getattr(maps, name)
        assert found.shape == (24, 256) and found.max() < len(classes)


def test_cells_tell_what_the_scene_says(truth):
    """Bug: rows and columns swapped, or the colour of one thing with the kind of another, spoils the ViT silently."""
    maps = truth[1]
    for index in range(24):
        scene = sample_scene(index)
        told = {(KIND_CLASSES[k], COLOUR_CLASSES[c]) for k, c in zip(maps.kind[index], maps.colour[index], strict=True)}
        things = {(thing.kind, thing.colour) for thing in scene.things}
        assert {pair for pair in told if pair[1] != "none"} <= things
        for thing in scene.things:
            left, top, right, bottom = scene.box(thing)
            mine = np.abs(maps.box[index] - [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) < 1e-5
            cells = np.flatnonzero(mine.all(1))
            assert len(cells), thing
            rows, columns = (cells // 16 + 0.5) / 16, (cells % 16 + 0.5) / 16
            assert (rows > top - 0.05).all() and (rows < bottom + 0.05).all()
            assert (columns > left - 0.05).all() and (columns < right + 0.05).all()


def test_sky_lies_above_the_ground(truth):
    for kind in truth[1].kind:
        assert KIND_CLASSES.index("ground") not in kind[:16]
        assert (kind[-16:] != KIND_CLASSES.index("sky")).all()


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiples of the grid 16"):
        token_truth("train", 1, "narrow", (72, 64), 16, processes=1)
