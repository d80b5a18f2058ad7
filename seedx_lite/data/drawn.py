"""Drawn scenes as arrays, with what each cell of a grid shows: drawn once, kept in a cache, mapped from there.

The grid is that of the visual embeddings; the ViT's dense objective and the weights of all losses come from it.
"""

import hashlib
import math
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import PIL

from seedx_lite import world
from seedx_lite.world.brush import PARTS
from seedx_lite.world.draw import render, render_truth
from seedx_lite.world.edits import sample_chain, sample_edit
from seedx_lite.world.scene import COLOURS, KINDS, POSES, Scene, sample_scene
from .formats import alone

KIND_CLASSES = ("sky", "ground", *KINDS)
COLOUR_CLASSES = ("none", *COLOURS)
PART_CLASSES = ("none", *PARTS)
POSE_CLASSES = ("none", *POSES)
EMPHASIS = 4.0  # how much more a thing counts than background, see `thing_weights`
Size = tuple[int, int]  # (width, height) in px
PROCESSES, CHUNK = 2, 64  # chunk: scenes handed to a process at a time
WORDS = ("language.py", "captions.py", "questions.py", "edits.py")  # of the world, but not of how it looks


@dataclass(frozen=True)
class Drawn:
    """K scenes, T = grid² cells, row by row.

    pictures: uint8 [K, H, W, 3]. kind, colour, part, pose: uint8 [K, T], indices into the `…_CLASSES`. box: float32
    [K, T, 4], centre x and y, width and height of the thing in the cell as fractions of the picture; zeros where there
    is none.
    """

    pictures: np.ndarray
    kind: np.ndarray
    colour: np.ndarray
    part: np.ndarray
    pose: np.ndarray
    box: np.ndarray


def scenes(split: str, count: int, mix: str = "narrow", size: Size = (64, 64)) -> list[Scene]:
    """The first `count` scenes of a split."""
    return [sample_scene(index, split, mix, size) for index in range(count)]


def draw_scenes(
    split: str, count: int, mix: str = "narrow", size: Size = (64, 64), grid: int = 16, cache: str | Path | None = None
) -> Drawn:
    """Draws `scenes(split, count, mix, size)`; with a `cache`, maps them read-only from a folder in it, which appears
    whole or not at all; changed drawing code makes a new one in place of it. Raises ValueError for `count` < 1, sides
    that are not multiples of the grid, and what `sample_scene` refuses."""
    if size[0] % grid or size[1] % grid:
        raise ValueError(f"draw_scenes: sides that are multiples of the grid {grid} expected, got {size}")
    draw = partial(_draw_one, split=split, mix=mix, size=size, grid=grid)
    name = f"{split}-{mix}-{size[0]}x{size[1]}-{grid}"
    return Drawn(**_drawn(Drawn, draw, count, name, world_hash(WORDS), cache))


@dataclass(frozen=True)
class DrawnEdits:
    """K edits. source, target: uint8 [K, H, W, 3]. outside: bool [K, H, W], pixels that the edit does not touch."""

    source: np.ndarray
    target: np.ndarray
    outside: np.ndarray


def draw_edits(
    split: str, count: int, mix: str = "narrow", size: Size = (64, 64), cache: str | Path | None = None
) -> DrawnEdits:
    """Draws the first `count` edits of a split before and after, with a cache as in `draw_scenes`."""
    draw = partial(_draw_edit, split=split, mix=mix, size=size)
    name = f"edits-{split}-{mix}-{size[0]}x{size[1]}"
    return DrawnEdits(**_drawn(DrawnEdits, draw, count, name, world_hash(), cache))


@dataclass(frozen=True)
class DrawnChains:
    """K chains of L edits. pictures: uint8 [K, L + 1, H, W, 3], the first source and then each target."""

    pictures: np.ndarray


def draw_chains(
    split: str, count: int, length: int, size: Size = (64, 64), cache: str | Path | None = None
) -> DrawnChains:
    """Draws the first `count` chains of a split in the looks of the narrow mix, with a cache as in `draw_scenes`."""
    draw = partial(_draw_chain, length=length, split=split, size=size)
    name = f"chains-{split}-{length}-{size[0]}x{size[1]}"
    return DrawnChains(**_drawn(DrawnChains, draw, count, name, world_hash(), cache))


def cell_owners(drawn: Drawn, chosen: Sequence[Scene]) -> np.ndarray:
    """Which thing each cell shows: uint8 [K, T], 1 + its number in `Scene.things`, 0 for none."""
    owners = np.zeros(drawn.kind.shape, dtype=np.uint8)
    for row, scene in enumerate(chosen):
        boxes = np.array([scene.box(thing) for thing in scene.things])
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        here = drawn.kind[row] >= 2
        distance = np.abs(drawn.box[row, here, None, :2] - centres).sum(-1)  # [cells, things]
        owners[row, here] = 1 + distance.argmin(1)
    return owners


def thing_weights(kind, emphasis: float = EMPHASIS):
    """Weights of cells with the mean 1, from their `kind` (array or tensor): things count `emphasis` times as much.

    Sky and ground fill most of a picture and are soon learned; without weights they drown what is left to learn.
    """
    weights = 1 + (emphasis - 1) * (kind >= 2)
    return weights / weights.mean()


def plain_sky(picture: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """A picture uint8 [H, W, 3] without sun, moon and clouds: in each row, the pixels of the sky get their median
    colour. kinds: those of its cells, [T], as in `Drawn`; a cell with anything but sky in or beside it stays as it is,
    so that no more than the tip of a mast is cut off a thing."""
    grid = math.isqrt(kinds.size)
    sky = np.pad(kinds.reshape(grid, grid) == KIND_CLASSES.index("sky"), 1, mode="edge")
    clear = np.lib.stride_tricks.sliding_window_view(sky, (3, 3)).all((2, 3))
    clear = clear.repeat(picture.shape[0] // grid, 0).repeat(picture.shape[1] // grid, 1)  # [H, W]
    plain = picture.copy()
    for row in np.flatnonzero(clear.any(1)):
        plain[row, clear[row]] = np.median(picture[row, clear[row]], axis=0).round()
    return plain


def _drawn(
    kind: type, draw: Callable[[int], tuple], count: int, name: str, code: str, cache: str | Path | None
) -> dict[str, np.ndarray]:
    """An array for each field of `kind` from what `draw` gives for 0 to `count` - 1, by way of the cache."""
    if count < 1:
        raise ValueError(f"{name}: count of at least 1 expected, got {count}")
    names, name = [field.name for field in fields(kind)], f"{name}-{count}"
    folder = None if cache is None else Path(cache) / f"{name}-{code}"

    def load(folder: Path, **options: str) -> dict[str, np.ndarray]:
        return {field: np.load(folder / f"{field}.npy", **options) for field in names}

    if folder is None:
        with tempfile.TemporaryDirectory() as draft:
            _draw_into(Path(draft), name, names, range(count), draw)
            return load(Path(draft))
    with alone(folder):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as draft:
                _draw_into(Path(draft), name, names, range(count), draw)
                Path(draft).rename(folder)
            for old in folder.parent.glob(f"{name}-*"):
                if old != folder:
                    shutil.rmtree(old, ignore_errors=True)
    return load(folder, mmap_mode="r")


def _draw_into(folder: Path, name: str, names: Sequence[str], indices: range, draw: Callable[[int], tuple]) -> None:
    """Writes one .npy file for each name."""
    from tqdm.auto import tqdm

    chunks = [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]
    draw = partial(_draw_chunk, draw)
    # A fork needs no guard around the caller's main module; elsewhere than on Linux it is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    bar = tqdm(total=len(indices), desc=f"drawing {name}", unit=" scenes", disable=len(indices) < 1500)
    arrays: dict[str, np.ndarray] = {}
    with ProcessPoolExecutor(PROCESSES, context) as pool, bar:
        for chunk, drawn in zip(chunks, map(draw, chunks) if len(chunks) == 1 else pool.map(draw, chunks), strict=True):
            for field, part in zip(names, drawn, strict=True):
                if field not in arrays:
                    shape = (len(indices), *part.shape[1:])
                    arrays[field] = np.lib.format.open_memmap(folder / f"{field}.npy", "w+", part.dtype, shape)
                arrays[field][chunk.start : chunk.stop] = part
            bar.update(len(chunk))


def _draw_chunk(draw: Callable[[int], tuple], indices: range) -> list[np.ndarray]:
    return [np.stack(column) for column in zip(*map(draw, indices), strict=True)]


def _draw_edit(index: int, split: str, mix: str, size: Size) -> tuple[np.ndarray, ...]:
    """The fields of `DrawnEdits` for one edit."""
    edit = sample_edit(index, split, mix, size)
    outside = np.ones(size[::-1], dtype=bool)
    for left, top, right, bottom in edit.changed:
        rows, columns = (
            slice(max(0, math.floor(low * side) - 1), math.ceil(high * side) + 1)  # edges are smoothed over a pixel
            for low, high, side in ((top, bottom, size[1]), (left, right, size[0]))
        )
        outside[rows, columns] = False
    source, target = np.asarray(render(edit.source)), np.asarray(render(edit.target))
    return source, target, outside & (source == target).all(-1)  # a soft shadow reaches further than its box


def _draw_chain(index: int, length: int, split: str, size: Size) -> tuple[np.ndarray]:
    """The field of `DrawnChains` for one chain."""
    edits = sample_chain(index, length, split, size=size)
    return (np.stack([np.asarray(render(scene)) for scene in (edits[0].source, *(edit.target for edit in edits))]),)


def _draw_one(index: int, split: str, mix: str, size: Size, grid: int) -> tuple[np.ndarray, ...]:
    """The fields of `Drawn` for one scene."""
    scene = sample_scene(index, split, mix, size)
    picture, truth = render_truth(scene)
    count, cell = len(scene.things), (picture.height // grid, picture.width // grid)

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


def world_hash(without: tuple[str, ...] = ()) -> str:
    """A hash of the code of the world and of this file; without `WORDS`, of what decides how a scene looks."""
    files = sorted(Path(world.__file__).parent.glob("*.py"))
    code = b"".join(file.read_bytes() for file in [*files, Path(__file__)] if file.name not in without)
    return hashlib.sha256(code + f"{PIL.__version__} {np.__version__}".encode()).hexdigest()[:12]
