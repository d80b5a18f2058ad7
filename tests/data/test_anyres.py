import pytest
from PIL import Image

from seedx_lite.data.anyres import MAX_PIXELS, divide_to_patches, grid_resolutions, process_anyres_image, tile


def test_pieces_come_row_by_row_and_the_whole_last():
    """Pieces column by column would meet the positions of others."""
    image = Image.new("RGB", (20, 20))
    for x in (0, 10):
        for y in (0, 10):
            image.paste((x * 10, y * 10, 0), (x, y, x + 10, y + 10))
    patches, positions = process_anyres_image(image, ["2x2"], 10)
    assert [patch.getpixel((5, 5))[:2] for patch in patches[:4]] == [(0, 0), (100, 0), (0, 100), (100, 100)]
    assert positions == ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75), (0.5, 0.5))
    assert {patch.size for patch in patches} == {(10, 10)}


def test_pictures_that_are_not_rgb():
    """A palette picture would be resized by nearest neighbour."""
    patches, _ = process_anyres_image(Image.new("P", (30, 10)), base_resolution=10)
    assert {patch.mode for patch in patches} == {"RGB"}


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (MAX_PIXELS, 2)])
def test_pictures_of_an_impossible_size(size):
    """A picture of gigapixels would fill the memory, one without area would divide by zero."""
    with pytest.raises(ValueError, match=f"{size[0]}×{size[1]} pixels, expected 1 to"):
        tile(size)


@pytest.mark.parametrize("grid", ["2", "0x1", "x2", "2x-1", "axb", "2x1x1"])
def test_bad_grids(grid):
    """A grid without squares would fail far from the line that set it."""
    with pytest.raises(ValueError, match=f"grid '{grid}'"):
        grid_resolutions(["1x1", grid], 10)


def test_no_grid_and_no_size():
    """An empty list would fail inside max() with no word about grids."""
    with pytest.raises(ValueError, match="no grids given"):
        tile((5, 5), [], 10)
    with pytest.raises(ValueError, match="base_resolution is 0"):
        tile((5, 5), base_resolution=0)
    with pytest.raises(ValueError, match="15×10 picture cannot be cut into squares of 10"):
        divide_to_patches(Image.new("RGB", (15, 10)), 10)


def test_rule_one_wins_on_equal_areas():
    """No row of the golden fixtures has equal areas, so they would not notice the other order."""
    assert tile((10, 10), ["4x1", "2x2"], 56).resolution == (224, 56)
    assert tile((10, 10), ["2x2", "4x1"], 56).resolution == (112, 112)
