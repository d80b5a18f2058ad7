"""How much of a picture survives the way through the visual embeddings, measured against the true scene.

Two numbers for each held-out scene. `colour_error`: mean absolute difference per channel, in levels of 0..255, over the
pixels where things are seen. `thing_iou`: in the box of each thing, grown by a quarter, the pixels that look more like
that thing than like the scene without it, against those where it is; intersection over union, mean over the things.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm.auto import tqdm

from seedx_lite.data.drawn import scenes
from seedx_lite.models.precision import quick_sampling
from seedx_lite.models.vit import embed_pictures
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline
from seedx_lite.pipelines.text_to_image import noise
from seedx_lite.presets import Preset
from seedx_lite.world.brush import PARTS, SMALL_PARTS
from seedx_lite.world.draw import Truth, render, render_truth
from seedx_lite.world.scene import Scene
from .images import mask_iou

PALETTE, GROWTH = 6, 0.25
LEAST_PART = 5  # px


class Part(NamedTuple):
    """A small part of a thing (a limb, a wheel, a window): where it is seen and where one looks for it, bool [H, W];
    its main colours and those around it, float [≤ 6, 3]."""

    mask: np.ndarray
    window: np.ndarray
    palette: np.ndarray
    around: np.ndarray


@dataclass(frozen=True)
class Target:
    """What a picture of one scene is judged by; K things, H×W pixels.

    picture: uint8 [H, W, 3]. masks: bool [K, H, W], where each thing is seen. windows: bool [K, H, W], its grown box
    without the pixels of other things. palettes: per thing its main colours, float [≤ 6, 3]. without: uint8
    [K, H, W, 3], the picture without it: what is behind it inside its mask, unchanged (also its shadow) outside.
    parts: its small parts of `LEAST_PART` px or more.
    """

    picture: np.ndarray
    masks: np.ndarray
    windows: np.ndarray
    palettes: tuple[np.ndarray, ...]
    without: np.ndarray
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, scene: Scene) -> Self:
        """Draws the scene, once whole and once without each thing."""
        image, truth = render_truth(scene)
        picture, masks = np.asarray(image), truth.masks
        windows = [_grown(box, mask.shape) for box, mask in zip(truth.boxes, masks, strict=True)]
        behind = [render(replace(scene, things=scene.things[:k] + scene.things[k + 1 :])) for k in range(len(masks))]
        return cls(
            picture,
            masks,
            np.stack(windows) & (masks | ~masks.any(0)),
            tuple(main_colours(picture[mask]) for mask in masks),
            np.where(masks[..., None], np.stack([np.asarray(image) for image in behind]), picture),
            tuple(_parts(picture, truth)),
        )


def _parts(picture: np.ndarray, truth: Truth) -> Iterator[Part]:
    for thing in truth.masks:
        for name in SMALL_PARTS:
            mask = truth.parts[PARTS.index(name)] & thing
            if np.count_nonzero(mask) < LEAST_PART:
                continue
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]])
            window = _grown(np.concatenate([low - 1.0, high + 2.0]), mask.shape)  # a pixel more on each side
            yield Part(mask, window, main_colours(picture[mask]), main_colours(picture[window & ~mask]))


def _grown(box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A box (left, top, right, bottom in px), grown by `GROWTH` about its middle, as a mask."""
    margin = GROWTH / 2 * np.array([box[2] - box[0], box[3] - box[1]])
    left, top = np.maximum(0, np.floor(box[:2] - margin)).astype(int)
    right, bottom = np.ceil(box[2:] + margin).astype(int)
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def main_colours(pixels: np.ndarray, count: int = PALETTE, rounds: int = 12) -> np.ndarray:
    """At most `count` colours that stand for `pixels` [P, 3], by k-means: float [≤ count, 3], the same on every call.

    It starts from the median pixel and then, one by one, from the pixel farthest from all starts so far.
    """
    pixels = pixels.astype(np.float64)
    centres = np.median(pixels, axis=0, keepdims=True)
    while len(centres) < count and (gaps := _distances(pixels, centres).min(1)).max() > 0:
        centres = np.concatenate([centres, pixels[[gaps.argmax()]]])
    for _ in range(rounds):
        nearest = _distances(pixels, centres).argmin(1)
        centres = np.stack([pixels[nearest == k].mean(0) for k in np.unique(nearest)])
    return centres


def _distances(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Euclidean distances [P, C] of pixels [P, 3] to colours [C, 3]."""
    return np.linalg.norm(pixels[:, None] - colours, axis=2)


def colour_error(target: Target, picture: np.ndarray) -> float:
    """Mean absolute difference per channel over the pixels of the things, in levels of 0..255."""
    seen = target.masks.any(0)
    return float(np.abs(picture[seen].astype(np.float64) - target.picture[seen]).mean())


def thing_iou(target: Target, picture: np.ndarray) -> float:
    """Mean over the things of the overlap between where each is and where it seems to be, 0 to 1."""
    parts, scores = (target.masks, target.windows, target.palettes, target.without), []
    for mask, window, palette, without in zip(*parts, strict=True):
        pixels = picture[window].astype(np.float64)
        to_rest = np.linalg.norm(pixels - without[window], axis=1)
        seems, there = _distances(pixels, palette).min(1) < to_rest, mask[window]
        scores.append((seems & there).sum() / (seems | there).sum())
    return float(np.mean(scores))


def part_ious(target: Target, picture: np.ndarray) -> np.ndarray:
    """For each small part the overlap between where it is and the pixels about it that look more like it than like what
    is around it, 0 to 1: [P]. Compare with what the true picture gets: a part may have the colour of its
    surroundings."""
    scores = []
    for part in target.parts:
        pixels = picture[part.window].astype(np.float64)
        seems = _distances(pixels, part.palette).min(1) < _distances(pixels, part.around).min(1)
        scores.append(mask_iou(seems, part.mask[part.window]))
    return np.array(scores)


def judge(targets: Sequence[Target], pictures: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Both numbers of each picture: uint8 [H, W, 3], as large as its scene.

    Raises ValueError for a picture of another size or kind, and another number of them.
    """
    if len(targets) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures for {len(targets)} scenes; give one for each")
    for number, (target, picture) in enumerate(zip(targets, pictures, strict=True)):
        if picture.shape != target.picture.shape or picture.dtype != np.uint8:
            expected = f"uint8 {list(target.picture.shape)}, like its scene"
            raise ValueError(f"picture {number} is {picture.dtype} {list(picture.shape)}, expected {expected}")
    measures = {"colour_error": colour_error, "thing_iou": thing_iou}
    return {name: list(map(measure, targets, pictures)) for name, measure in measures.items()}


def held_out(preset: Preset, count: int, split: str = "test") -> list[Target]:
    """The first `count` scenes of a split, drawn, with what they are judged by."""
    chosen = scenes(split, count, "narrow", preset.size)
    return [Target.of(scene) for scene in tqdm(chosen, desc=f"{split} scenes", disable=count < 64)]


def reconstruct(
    pipe: DetokenizerPipeline,
    pictures: Sequence[np.ndarray],
    indices: Sequence[int],
    steps: int = 25,
    guidance: float = 2.0,
    seed: int = 0,
    batch_size: int = 32,
    quick: bool = False,
    **conditions: Any,
) -> list[np.ndarray]:
    """Pictures uint8 [H, W, 3] by way of their embeddings. The noise of each depends on its index and `seed` only.

    quick: in bf16 where the device has units for it, see `quick_sampling`. conditions: further arguments of the
    pipeline, such as condition images.
    """
    images = [Image.fromarray(picture) for picture in pictures]
    with quick_sampling(pipe.device) if quick else nullcontext():
        drawn = pipe(images, steps, guidance, noise(seed, indices), batch_size=batch_size, **conditions).images
    return [np.asarray(image) for image in drawn]


def nearest_pictures(
    pipe: DetokenizerPipeline, pictures: Sequence[np.ndarray], training: np.ndarray
) -> dict[str, list[int]]:
    """For each picture the training picture of highest cosine between the means of their embeddings ("nearest_mean"),
    and between all their pooled embeddings ("nearest"), as indices. What all training pictures share is subtracted."""
    n = pipe.vit.config["n_queries"] // pipe.config.vit_down

    def closest(ours: torch.Tensor, theirs: torch.Tensor) -> list[int]:
        ours, theirs = (F.normalize(side - theirs.mean(0), dim=1) for side in (ours, theirs))
        return (ours @ theirs.T).argmax(1).tolist()

    ours, theirs = (embed_pictures(pipe.vit, np.asarray(some), n) for some in (pictures, training))  # [K, N, D]
    return {
        "nearest_mean": closest(ours.mean(1), theirs.mean(1)),
        "nearest": closest(ours.flatten(1), theirs.flatten(1)),
    }
