"""The network of the scene reader."""

import pytest
import torch

from seedx_lite.models.scene_reader import BACKBONES, SceneReader, sines
from seedx_lite.world.scene import COLOURS, GROUNDS, KINDS, POSES, SKIES

ANSWERS = {"kinds": KINDS, "colours": COLOURS, "poses": POSES, "skies": SKIES, "grounds": GROUNDS}


def new(backbone: str) -> SceneReader:
    torch.manual_seed(0)
    return SceneReader(backbone, 32, 1, **{name: list(known) for name, known in ANSWERS.items()}).eval()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_cell_for_four_pixels_of_any_size(backbone):
    """Bug: a reader with a table of positions stops at wide pictures."""
    read = new(backbone)(torch.randn(2, 3, 32, 48))
    assert {name: tuple(value.shape) for name, value in read.items()} == {
        "centre": (2, 8, 8, 12), "colour": (2, 8, 8, 12), "pose": (2, 5, 8, 12), "facing": (2, 2, 8, 12),
        "offset": (2, 2, 8, 12), "size": (2, 2, 8, 12), "sky": (2, 3), "ground": (2, 4), "level": (2, 2),
    }  # fmt: skip


@pytest.mark.parametrize("backbone", BACKBONES)
def test_saved_and_read_again(backbone, tmp_path):
    one = new(backbone)
    one.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(one(images)["centre"], SceneReader.from_pretrained(tmp_path)(images)["centre"])


def test_places_are_told_apart():
    """Bug: waves that repeat within the picture make two places look the same."""
    cells = sines(32, 16, 16, torch.device("cpu")).flatten(1).T  # [256, 32]
    distance = torch.cdist(cells, cells)
    assert distance.fill_diagonal_(9).min() > 0.3


@pytest.mark.parametrize("shape", [(1, 3, 30, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_odd_pictures_are_refused(shape):
    with pytest.raises(ValueError, match=r"sides of 8·n px expected, got \["):
        new("convolution")(torch.zeros(shape))


def test_unknown_backbone_or_odd_width_is_refused():
    with pytest.raises(ValueError, match="convolution or transformer"):
        SceneReader("wavelet", 32, 1, **{name: list(known) for name, known in ANSWERS.items()})
