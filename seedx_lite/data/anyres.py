"""Any image size (paper §3.2): cut a picture into squares of the encoder's size, and add the whole picture.

Sizes are (width, height) in px. Official `src/data/any_res.py`: two rules each choose a grid, the smaller one wins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from .pictures import MAX_PIXELS

Size = tuple[int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom
Centre = tuple[float, float]  # (x, y) in 0..1

GRIDS = ("1x1", "1x2", "1x3", "2x1", "3x1", "1x4", "4x1", "2x2")  # squares across x squares down


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut; positions hold one entry more than boxes, for the whole picture at the end."""

    resolution: Size  # the picture is resized to this, its aspect ratio not kept
    boxes: tuple[Box, ...]  # in the resized picture, row by row
    positions: tuple[Centre, ...]


def grid_resolutions(grids: Sequence[str] = GRIDS, base_resolution: int = 448) -> list[Size]:
    """Resolutions of grids "AxB", A squares across and B down. Raises ValueError that names a bad grid."""
    if base_resolution < 1:
        raise ValueError(f"base_resolution is {base_resolution}, expected the encoder's image size in pixels")
    if not grids:
        raise ValueError('no grids given, expected at least one such as "1x1"')
    resolutions = []
    for grid in grids:
        across, _, down = grid.partition("x")
        if not (across.isdecimal() and down.isdecimal() and int(across) and int(down)):
            raise ValueError(f'grid {grid!r}: expected "AxB" with A squares across and B down, such as "2x1"')
        resolutions.append((int(across) * base_resolution, int(down) * base_resolution))
    return resolutions


def select_best_resolution(size: Size, resolutions: Sequence[Size]) -> Size:
    """Rule 1: keep most pixels of the picture when fitted inside, then waste least; the first of equals."""
    width, height = size

    def kept_and_wasted(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(resolutions, key=kept_and_wasted)


def select_best_resolution_v2(size: Size, resolutions: Sequence[Size]) -> Size:
    """Rule 2: closest aspect ratio, then closest area, both as quotients; the first of equals."""

    def quotients(resolution: Size) -> tuple[float, float]:
        ratios = size[1] / size[0], resolution[1] / resolution[0]
        areas = size[0] * size[1], resolution[0] * resolution[1]
        return max(ratios) / min(ratios), max(areas) / min(areas)

    return min(resolutions, key=quotients)


def tile(size: Size, grids: Sequence[str] = GRIDS, base_resolution: int = 448) -> Tiling:
    """Plan the cuts of a picture: rule 1, or rule 2 where that takes fewer pixels. Raises ValueError for a picture
    without area or of more than MAX_PIXELS, and for bad grids."""
    if min(size) < 1 or math.prod(size) > MAX_PIXELS:
        raise ValueError(f"the picture is {size[0]}×{size[1]} pixels, expected 1 to {MAX_PIXELS:,} in all; shrink it")
    resolutions = grid_resolutions(grids, base_resolution)
    rules = select_best_resolution, select_best_resolution_v2
    chosen = min((rule(size, resolutions) for rule in rules), key=math.prod)  # the first of equals
    boxes = patch_boxes(chosen, base_resolution)
    centres = tuple(((x0 + x1) / 2 / chosen[0], (y0 + y1) / 2 / chosen[1]) for x0, y0, x1, y1 in boxes)
    return Tiling(chosen, boxes, (*centres, (0.5, 0.5)))


def patch_boxes(size: Size, side: int) -> tuple[Box, ...]:
    """Squares of `side` pixels that fill a picture, row by row. Raises ValueError where they do not fit."""
    width, height = size
    if side < 1 or width % side or height % side:
        raise ValueError(f"a {width}×{height} picture cannot be cut into squares of {side}; resize it to a multiple")
    return tuple((x, y, x + side, y + side) for y in range(0, height, side) for x in range(0, width, side))


def divide_to_patches(image: Image.Image, side: int) -> list[Image.Image]:
    """Cut a picture into squares of `side` pixels, row by row. Raises ValueError where they do not fit."""
    return [image.crop(box) for box in patch_boxes(image.size, side)]


def process_anyres_image(
    image: Image.Image, grids: Sequence[str] = GRIDS, base_resolution: int = 448
) -> tuple[list[Image.Image], tuple[Centre, ...]]:
    """Squares row by row, then the whole picture, all of side `base_resolution`; and their positions. Raises ValueError
    as `tile` does."""
    tiling = tile(image.size, grids, base_resolution)
    image = image.convert("RGB")
    patches = divide_to_patches(image.resize(tiling.resolution, Image.Resampling.BICUBIC), base_resolution)
    whole = image.resize((base_resolution, base_resolution), Image.Resampling.BICUBIC)
    return [*patches, whole], tiling.positions
