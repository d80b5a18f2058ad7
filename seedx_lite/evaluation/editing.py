"""Edited pictures: is the change there, and has everything else stayed?"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from seedx_lite.data.drawn import DrawnEdits, draw_edits
from seedx_lite.models.autoencoder import round_trips
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline
from seedx_lite.world.edits import Edit, sample_edit
from seedx_lite.world.scene import PLACES, Scene, Thing
from .reconstruction import reconstruct
from .scene_reader import MATCH, centre, read_scenes
from .statistics import bootstrap

REACH = 0.15  # of the width: half of a thing that stands at the border of a third


def success(edit: Edit, read: Scene) -> bool:
    """Whether a reading shows the change: what is new is there with its colour and pose, what has gone is not, and sky
    and ground are those of the target. What the edit leaves alone does not count. A thing that moved a little is where
    the reading is nearer to."""
    gone = [thing for thing in edit.source.things if thing not in edit.target.things]
    new = [thing for thing in edit.target.things if thing not in edit.source.things]
    seen = [_nearest(thing, read, edit, gone + new) for thing in read.things]
    shown = all(thing in seen for thing in new) and not any(thing in seen for thing in gone)
    return shown and (read.sky, read.ground) == (edit.target.sky, edit.target.ground)


def worded_success(edit: Edit, read: Scene) -> bool:
    """`success` of an edit that only words have told: they name no more of a new place than its third, so what is added
    or moved counts anywhere in it."""
    if edit.kind not in ("add", "move"):
        return success(edit, read)
    wanted, seen, old = (worded_content(scene)[2] for scene in (edit.target, read, edit.source))
    new = all(seen[one] >= wanted[one] for one in wanted - old)
    gone = all(seen[one] <= wanted[one] for one in old - wanted)
    return new and gone and (read.sky, read.ground) == (edit.target.sky, edit.target.ground)


def worded_content(scene: Scene) -> tuple[str, str, Counter]:
    """What a full caption says of a scene, but for the order of things within one third."""
    return scene.sky, scene.ground, Counter(thing.content for thing in scene.things)


def worded_outside(edit: Edit, outside: np.ndarray) -> np.ndarray:
    """The mask [H, W] of what such an edit leaves alone: without the third in which a thing is added or moved to, and
    `REACH` beside it."""
    if edit.kind not in ("add", "move"):
        return outside
    columns = (np.arange(outside.shape[1]) + 0.5) / outside.shape[1]
    left = outside.copy()
    for thing in (thing for thing in edit.target.things if thing not in edit.source.things):
        start = PLACES.index(thing.place) / len(PLACES)
        left[:, (columns > start - REACH) & (columns < start + 1 / len(PLACES) + REACH)] = False
    return left


def _nearest(seen: Thing, read: Scene, edit: Edit, things: Sequence[Thing]) -> Thing | None:
    """Of the things with the kind, colour and pose of one that was read, the nearest within `MATCH`."""
    alike = [one for one in things if (one.kind, one.colour, one.pose) == (seen.kind, seen.colour, seen.pose)]
    gaps = [np.hypot(*np.subtract(centre(read, seen), centre(edit.source, one))) for one in alike]
    return alike[int(np.argmin(gaps))] if gaps and min(gaps) <= MATCH else None


def outside_error(target: np.ndarray, picture: np.ndarray, outside: np.ndarray) -> float:
    """Mean absolute difference of two pictures uint8 [H, W, 3] per channel where the mask [H, W] is set, in levels of
    0..255. Raises ValueError for a mask without any pixel."""
    if not outside.any():
        raise ValueError("an edit of the whole picture has no outside; leave it out")
    return float(np.abs(picture[outside].astype(float) - target[outside]).mean())


@lru_cache(maxsize=2)
def held_edits(count: int, size: tuple[int, int], split: str = "test") -> tuple[list[Edit], DrawnEdits]:
    """The first edits of a split, with their pictures."""
    return [sample_edit(index, split, "narrow", size) for index in range(count)], draw_edits(split, count, size=size)


def judge_edits(edits: Sequence[Edit], *shown: Any, **options: Any) -> dict[str, dict[str, float]]:
    """`score_edits` of the same arguments, summarised."""
    return summarise_edits(edits, score_edits(edits, *shown, **options))


def score_edits(
    edits: Sequence[Edit],
    drawn: DrawnEdits,
    pictures: Sequence[np.ndarray],
    reader: SceneReader,
    worded: bool = False,
    made: Sequence[bool] | None = None,
) -> dict[str, list[float]]:
    """Pictures that should be the targets: `success` of each edit, 1 or 0, and `outside_error` of each that has an
    outside. worded: by what words tell of an edit; then also `right`, whether the whole scene is. made: which edits
    have a picture of their own (all); the others are the source, whose error outside does not count."""
    masks = drawn.outside
    if worded:
        masks = [worded_outside(*pair) for pair in zip(edits, masks, strict=True)]
    done, read = worded_success if worded else success, read_scenes(reader, pictures)
    rows = zip(made or [True] * len(edits), drawn.target, pictures, masks, strict=True)
    pairs = list(zip(edits, read, strict=True))
    scores = {
        "success": [float(done(*pair)) for pair in pairs],
        "outside_error": [outside_error(*row) for counts, *row in rows if counts and row[2].any()],
    }
    if worded:
        scores["right"] = [float(worded_content(scene) == worded_content(edit.target)) for edit, scene in pairs]
    return scores


def summarise_edits(edits: Sequence[Edit], scores: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Means of `score_edits` with intervals; also of `success` by kind of edit."""
    told = {metric: bootstrap([(one, 1) for one in values]) for metric, values in scores.items() if values}
    for kind in sorted({edit.kind for edit in edits}):
        same = [one for one, edit in zip(scores["success"], edits, strict=True) if edit.kind == kind]
        told[kind] = bootstrap([(one, 1) for one in same])
    return told


def edited(
    pipe: DetokenizerPipeline, drawn: DrawnEdits, condition: bool, seed: int, **options: Any
) -> list[np.ndarray]:
    """Targets drawn from their visual embeddings, with the source as condition image or without any; options go to
    `reconstruct`."""
    sources = [Image.fromarray(picture) for picture in drawn.source] if condition else None
    options |= {"condition_images": sources} if condition else {}
    return reconstruct(pipe, list(drawn.target), range(len(drawn.target)), seed=seed, **options)


def edit_ceiling(
    vae, reader: SceneReader, count: int, size: tuple[int, int], worded: bool = False
) -> dict[str, dict[str, float]]:
    """`judge_edits` of VAE round trips of the targets."""
    edits, drawn = held_edits(count, size)
    return judge_edits(edits, drawn, list(round_trips(vae, drawn.target)), reader, worded)
