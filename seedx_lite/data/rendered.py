"""Drawn scenes as arrays: made once, kept in a cache, mapped from there."""

import hashlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import PIL
from tqdm import tqdm

from .. import world
from ..world.draw import render
from ..world.scene import Scene, sample_scene
from .formats import replacing

PROCESSES, CHUNK = 2, 64  # chunk: scenes handed to a process at a time
WORDS = ("language.py", "questions.py", "edits.py")  # of the world, but not of how it looks


def scenes(split: str, count: int, mix: str = "narrow", size: tuple[int, int] = (64, 64)) -> list[Scene]:
    """The first `count` scenes of a split; `size` is (width, height) in px."""
    return [sample_scene(index, split, mix, size) for index in range(count)]


def rendered(
    split: str, count: int, mix: str = "narrow", size: tuple[int, int] = (64, 64), cache: str | Path = "runs/cache"
) -> np.ndarray:
    """The pictures of `scenes(split, count, mix, size)`: uint8 [count, H, W, 3], read-only, mapped from a file in
    `cache`, which appears whole or not at all; changed drawing code makes a new one in place of it. Raises ValueError
    for `count` < 1 and what `sample_scene` refuses."""
    if count < 1:
        raise ValueError(f"rendered: count of at least 1 expected, got {count}")
    name = f"{split}-{mix}-{size[0]}x{size[1]}-{count}"
    path = Path(cache) / f"{name}-{_drawing_code()}.npy"
    if not path.is_file():
        with replacing(path) as draft:
            shape = (count, size[1], size[0], 3)
            pictures = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
            chunks = [range(count)[start : start + CHUNK] for start in range(0, count, CHUNK)]
            draw = partial(_draw, split=split, mix=mix, size=size)
            # A fork needs no guard around the caller's main module; elsewhere than on Linux it is not safe.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            bar = tqdm(total=count, desc=f"drawing {name}", unit=" scenes")
            with ProcessPoolExecutor(PROCESSES, context) as pool, bar:
                drawings = map(draw, chunks) if len(chunks) == 1 else pool.map(draw, chunks)
                for chunk, drawn in zip(chunks, drawings, strict=True):
                    pictures[chunk.start : chunk.stop] = drawn
                    bar.update(len(chunk))
            pictures.flush()
            del pictures  # some systems rename only files that nobody has open
        for old in path.parent.glob(f"{name}-*.npy"):
            if old != path:
                old.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def _draw(indices: range, split: str, mix: str, size: tuple[int, int]) -> np.ndarray:
    return np.stack([np.asarray(render(sample_scene(index, split, mix, size))) for index in indices])


def _drawing_code() -> str:
    """A hash of everything that decides how a scene looks."""
    files = sorted(Path(world.__file__).parent.glob("*.py"))
    code = b"".join(file.read_bytes() for file in files if file.name not in WORDS)
    return hashlib.sha256(code + f"{PIL.__version__} {np.__version__}".encode()).hexdigest()[:12]
