"""What each visual embedding should know: the scene's truth on the tokens' grid, for the ViT's dense objective."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from seedx_lite.world.brush import PARTS
from seedx_lite.world.draw import render_truth
from seedx_lite.world.scene import COLOURS, KINDS, POSES, sample_scene

KIND_CLASSES = ("sky", "ground", *KINDS)
COLOUR_CLASSES = ("none", *COLOURS)
PART_CLASSES = ("none", *PARTS)
POSE_CLASSES = ("none", *POSES)
EMPHASIS = 4.0  # how much more a thing counts than background, see `thing_weights`


def thing_weights(kind, emphasis: float = EMPHASIS):
    """Weights of cells with the mean 1, from their `kind` (array or tensor): things count `emphasis` times as much.

    Sky and ground fill most of a picture and are soon learned; without weights they drown what is left to learn.
    """
    weights = 1 + (emphasis - 1) * (kind >= 2)
    return weights / weights.mean()


@dataclass(frozen=True)
class TokenTruth:
    """Per scene and cell of a grid × grid raster, row by row; K scenes, T = grid² cells.

    kind, colour, part, pose: uint8 [K, T], indices into the `…_CLASSES`. box: float32 [K, T, 4], centre x and y, width
    and height of the thing in the cell as fractions of the picture; zeros where there is none.
    """

    kind: np.ndarray
    colour: np.ndarray
    part: np.ndarray
    pose: np.ndarray
    box: np.ndarray


def token_truth(
    split: str, count: int, mix: str, size: tuple[int, int], grid: int, processes: int = 2
) -> tuple[np.ndarray, TokenTruth]:
    """Pictures uint8 [K, H, W, 3] and the truth on the grid, of the first `count` scenes of a split.

    Raises ValueError when the picture's sides are not multiples of the grid.
    """
    if size[0] % grid or size[1] % grid:
        raise ValueError(f"token_truth: sides that are multiples of the grid {grid} expected, got {size}")
    from tqdm.auto import tqdm

    work = partial(_one, split=split, mix=mix, size=size, grid=grid)
    with ProcessPoolExecutor(processes) as pool:
        done = pool.map(work, range(count), chunksize=max(1, min(100, count // processes)))
        rows = list(tqdm(done, total=count, desc=f"truth {split}", disable=count < 500))
    pictures, *maps = (np.stack(column) for column in zip(*rows, strict=True))
    return pictures, TokenTruth(*maps)


def _one(index: int, split: str, mix: str, size: tuple[int, int], grid: int) -> tuple[np.ndarray, ...]:
    scene = sample_scene(index, split, mix, size)
    picture, truth = render_truth(scene)
    count, cell = len(scene.things), (size[1] // grid, size[0] // grid)

    def shares(masks: np.ndarray) -> np.ndarray:
        """bool [K, H, W] → covered share of each cell, [K, T]"""
        return masks.reshape(len(masks), grid, cell[0], grid, cell[1]).mean((2, 4)).reshape(len(masks), grid * grid)

    covered = shares(truth.masks)  # [things, T]
    owner = np.where(covered.sum(0) >= 0.4, covered.argmax(0), -1)
    rows = (np.arange(grid * grid) // grid + 0.5) / grid
    kind = np.where(rows < scene.horizon, 0, 1)
    colour, pose = np.zeros_like(kind), np.zeros_like(kind)
    box = np.zeros((grid * grid, 4), dtype=np.float32)
    for number in range(count):
        thing, here = scene.things[number], owner == number
        left, top, right, bottom = scene.box(thing)
        kind[here] = 2 + KINDS.index(thing.kind)
        colour[here] = 1 + COLOURS.index(thing.colour)
        pose[here] = 1 + POSES.index(thing.pose) if thing.pose else 0
        box[here] = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    parts = shares(truth.parts)
    part = np.where(parts.max(0) >= 0.3, 1 + parts.argmax(0), 0)
    return (np.asarray(picture), *(a.astype(np.uint8) for a in (kind, colour, part, pose)), box)
