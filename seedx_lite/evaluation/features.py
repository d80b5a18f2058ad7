"""What the visual embeddings know: matching captions, reading single tokens, and what pooling to N takes away.

Axes: K scenes, T tokens of the vision encoder (a square grid of cells), N pooled tokens, c = T / N cells to each, D
channels. Probes are linear maps fitted by least squares on other scenes than they are measured on. Each of them sees
one token at a time and is not told which: the de-tokenizer's resampler does not see their order either.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seedx_lite.artifacts import read_manifest
from seedx_lite.data.drawn import COLOUR_CLASSES, KIND_CLASSES, PART_CLASSES, POSE_CLASSES, Drawn, draw_scenes, scenes
from seedx_lite.models.readers import TokenHeads
from seedx_lite.models.text import load_text_encoders
from seedx_lite.models.vit import (
    VisionTransformerWithAttnPool,
    embed_pictures,
    normalise,
    pool_embeddings,
    pooled_boxes,
)
from seedx_lite.world.brush import SMALL_PARTS
from seedx_lite.world.language import canonical_caption
from seedx_lite.world.scene import Scene
from .records import largest_difference, save_record

CLASSES = {"kind": KIND_CLASSES, "colour": COLOUR_CLASSES, "pose": POSE_CLASSES, "part": PART_CLASSES}
FIRST = {"kind": 2, "colour": 1, "pose": 1, "part": 1}  # number of the first class that speaks of a thing
SMALL = [PART_CLASSES.index(name) for name in SMALL_PARTS]  # limbs, wheels, windows: what is lost first
SCENES, FIT_SCENES = 512, 3000  # to measure on, and to fit probes on
GALLERY = 256  # pictures and captions among which one is to be found
NEAR = 0.05  # of the width: a centre read closer than this counts as found


@dataclass(frozen=True)
class Sample:
    """The first K scenes of a split, drawn, with the truth of each cell, and their tokens [K, T, D]."""

    scenes: list[Scene]
    truth: Drawn
    tokens: Tensor

    def first(self, count: int) -> Self:
        """The first `count` of them."""
        truth = Drawn(**{name: values[:count] for name, values in vars(self.truth).items()})
        return Sample(self.scenes[:count], truth, self.tokens[:count])


def embed_split(tower: VisionTransformerWithAttnPool, split: str, count: int, named: bool = True) -> Sample:
    """Draws the scenes, of the narrow mix, at the encoder's image size and embeds them. named: keep the scenes
    themselves, too; to fit probes on, their pictures and cells are enough."""
    size, grid = (tower.image_size,) * 2, round(tower.config["n_queries"] ** 0.5)
    truth = draw_scenes(split, count, "narrow", size, grid)
    chosen = scenes(split, count, "narrow", size) if named else []
    return Sample(chosen, truth, embed_pictures(tower, truth.pictures, batch=16))


@torch.no_grad()
def retrieval(heads: TokenHeads, texts, sample: Sample) -> dict[str, float]:
    """Share of pictures whose best caption among K fits, and the reverse (R@1), by the second text encoder.

    texts: tokenizer and both encoders. Captions are the canonical ones; another scene's fits if it says the same.
    """
    tokenizer, _, encoder = texts
    captions = [canonical_caption(scene) for scene in sample.scenes]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    text = F.normalize(torch.cat([encoder(part).text_embeds for part in ids.split(64)]), dim=-1)
    scores = heads.embed(sample.tokens)[1] @ text.T  # [K, K], a row for each picture
    said = np.array(captions)
    best = {"picture_to_caption": scores.argmax(dim=1), "caption_to_picture": scores.argmax(dim=0)}
    return {name: float((said[index.numpy()] == said).mean()) for name, index in best.items()}


def reading(read: dict[str, Tensor], truth: Drawn) -> dict[str, Any]:
    """How well the linear readers trained with the encoder name what is under each token.

    read: their output [K, T, …]. Shares of right answers: `kind` over all cells, `kind_on_things`, `colour` on things,
    `small_part` and `pose` where there is one; `centre_near`: centre of the thing within 0.05 of the width; `kinds`:
    for each kind that occurs.
    """
    things = truth.kind >= FIRST["kind"]
    right = {name: read[name].argmax(-1).numpy() == getattr(truth, name) for name in ("kind", "colour", "part", "pose")}
    found = np.linalg.norm(read["box"][..., :2].numpy() - truth.box[..., :2], axis=-1) <= NEAR
    return {
        "kind": float(right["kind"].mean()),
        "kind_on_things": float(right["kind"][things].mean()),
        "colour": float(right["colour"][things].mean()),
        "small_part": float(right["part"][np.isin(truth.part, SMALL)].mean()),
        "pose": float(right["pose"][truth.pose > 0].mean()),
        "centre_near": float(found[things].mean()),
        "kinds": {KIND_CLASSES[k]: float(right["kind"][truth.kind == k].mean()) for k in np.unique(truth.kind)},
    }


def fit_linear(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None, ridge: float = 1e-6
) -> Callable[[np.ndarray], np.ndarray]:
    """Least squares with a constant, from x [M, D] to y [M, C]; returns the map. weights: of the rows, [M, 1]. ridge:
    relative to the variance; on 1,000 validation scenes that no map was fitted on, 1e-3 to 1e-8 differ by .003.

    Raises ValueError for weights of another shape.
    """
    if weights is not None and weights.shape != (len(x), 1):
        raise ValueError(f"weights {list(weights.shape)} for {len(x)} rows; expected [{len(x)}, 1]")

    def with_one(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.ones((len(x), 1))], axis=1, dtype=np.float64)

    gram, moments = 0, 0
    for start in range(0, len(x), 50_000):  # in float64, and never all of them at once
        rows = slice(start, start + 50_000)
        part = with_one(x[rows])
        heavy = part if weights is None else part * weights[rows]
        gram, moments = gram + heavy.T @ part, moments + heavy.T @ y[rows]
    damped = gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    map_ = np.linalg.solve(damped, moments)  # [D + 1, C]
    return lambda new: with_one(new) @ map_


def probe(fit: Sample, test: Sample, n: int) -> dict[str, float]:
    """What single tokens of N = `n` tell, by linear maps fitted on one sample and measured on the other.

    `row_error`, `column_error`: of the token's own place, in cells; `row`, `column`: share that name it rightly.
    `centre_near`: share of tokens on one thing alone that tell its centre within 0.05 of the width; `centres`: share of
    things whose tokens do so in their mean, weighted by how many of their cells are on the thing, as in the fit. The
    rest asks each
    token about all c of its cells. `things`: which of them show a thing, as intersection over union. `kind`, `colour`,
    `pose`, `small_part`: what that is, given that there is one, as share of right answers.
    """
    x, x_test = (pool_embeddings(s.tokens, n).flatten(0, 1).numpy() for s in (fit, test))  # [K·N, D]
    places, told = _places(test, n), fit_linear(x, _places(fit, n))(x_test)  # [K·N, 2]
    result: dict[str, float] = {}
    for name, truth, read in zip(("row", "column"), places.T, told.T, strict=True):
        known = np.unique(truth)
        named = known[np.abs(read[:, None] - known).argmin(axis=1)]
        result |= {f"{name}_error": float(np.abs(read - truth).mean()), name: float((named == truth).mean())}
    (on, centres, share), (on_test, centres_test, share_test) = _centres(fit, n), _centres(test, n)
    votes = fit_linear(x[on], centres[on], share[on, None])(x_test[on_test])  # [tokens on one thing alone, 2]
    near = np.linalg.norm(votes - centres_test[on_test], axis=-1) <= NEAR
    rows = np.flatnonzero(on_test) // n
    centred = _things_centred(votes, share_test[on_test], rows, centres_test[on_test], test.scenes)
    there, there_test = ((s.truth.kind >= FIRST["kind"]).reshape(len(s.tokens) * n, -1) for s in (fit, test))
    told = fit_linear(x, there)(x_test) > 0.5
    things = (told & there_test).sum() / (told | there_test).sum()
    result |= {"centre_near": float(near.mean()), "centres": centred, "things": float(things)}
    for name, first in FIRST.items():
        truth, truth_test = (getattr(s.truth, name).reshape(len(s.tokens) * n, -1) for s in (fit, test))  # [K·N, c]
        codes = np.eye(len(CLASSES[name]))[:, first:]  # nothing to tell: zeros
        rows, rows_test = (truth >= first).any(axis=1), (truth_test >= first).any(axis=1)
        read, asked = fit_linear(x[rows], codes[truth[rows]].reshape(rows.sum(), -1)), truth_test[rows_test]
        told = first + read(x_test[rows_test]).reshape(*asked.shape, -1).argmax(axis=-1)
        counts = np.isin(asked, SMALL) if name == "part" else asked >= first
        result["small_part" if name == "part" else name] = float((told == asked)[counts].mean())
    return result


def variance_share(tokens: Tensor) -> float:
    """Share of the tokens' variance that lies along its three largest principal directions."""
    values = torch.linalg.eigvalsh(torch.cov(tokens.flatten(0, 1).double().T))
    return float(values[-3:].sum() / values.sum())


def nearest(tokens: Tensor) -> np.ndarray:
    """For each of K pictures the one with the most similar mean embedding, other than itself: [K]. Cosine, centred."""
    means = tokens.mean(dim=1)
    means = F.normalize(means - means.mean(dim=0), dim=-1)
    return (means @ means.T).fill_diagonal_(-2).argmax(dim=1).numpy()


def neighbours(sample: Sample) -> dict[str, dict[str, float]]:
    """Share of pictures that agree with their nearest neighbour in sky, ground, and at least one thing (kind and
    colour); beside it the same share over all pairs."""
    things = [{(thing.kind, thing.colour) for thing in scene.things} for scene in sample.scenes]
    skies, grounds = (np.array([getattr(scene, name) for scene in sample.scenes]) for name in ("sky", "ground"))
    same = {
        "sky": skies[:, None] == skies,
        "ground": grounds[:, None] == grounds,
        "a_thing": np.array([[bool(one & other) for other in things] for one in things]),
    }
    every, near = np.arange(len(things)), nearest(sample.tokens)
    others = every[:, None] != every
    return {
        "nearest": {name: float(pairs[every, near].mean()) for name, pairs in same.items()},
        "any_pair": {name: float(pairs[others].mean()) for name, pairs in same.items()},
    }


@torch.no_grad()
def reach(tower: VisionTransformerWithAttnPool, pictures: np.ndarray) -> dict[str, float]:
    """Mean distance, in widths of the picture, from a query's place to the patches that it reads (attention pooling);
    `uniform` is that of a query that reads all patches alike."""
    _, weights = tower.attn_pool(tower.grid_tokens(normalise(pictures)), return_attention=True)  # [K, heads, T, L]
    weights = weights.mean(dim=(0, 1))  # [T, L]
    queries, patches = ((_grid(count) + 0.5) / count**0.5 for count in weights.shape)  # middles, in widths
    distance = torch.cdist(queries, patches)  # [T, L]
    return {"attention": float((weights * distance).sum(dim=1).mean()), "uniform": float(distance.mean())}


def vit_report(vit_folder: str | Path, as_shipped: bool = False) -> dict[str, Any]:
    """All numbers of notebook 01, on the first test scenes; probes are fitted on validation scenes.

    as_shipped: weights rounded to float16, and the encoder computes in float64.
    """
    tower = VisionTransformerWithAttnPool.from_pretrained(vit_folder)
    heads = TokenHeads.from_pretrained(Path(vit_folder) / "heads")
    if as_shipped:
        tower, heads = tower.half().double(), heads.half().float()
    test, other = embed_split(tower, "test", SCENES), embed_split(tower, "validation", FIT_SCENES, named=False)
    about, tokens = read_manifest(vit_folder), tower.config["n_queries"]
    with torch.no_grad():
        read = heads(test.tokens)
    return {
        "preset": about["preset"],
        "seed": about["seed"],
        "artifacts": {about["stage"]: about["id"]},
        "split": "test",
        "scenes": SCENES,
        "fit_scenes": FIT_SCENES,
        "gallery": GALLERY,
        "retrieval": retrieval(heads, load_text_encoders(vit_folder), test.first(GALLERY)),
        "reading": reading(read, test.truth),
        "probe": {str(n): probe(other, test, n) for n in (tokens, tokens // 4, tokens // 8)},
        "pca_share": variance_share(test.tokens),
        "neighbours": neighbours(test),
        "reach": reach(tower.float(), test.truth.pictures[:32]),
    }


def evaluate(vit_folder: str | Path, runs: str | Path = "runs") -> Path:
    """Measures, writes the record `vit` and returns its path.

    Its tolerance is three times the largest change of any number in a repeat with other arithmetic, at least .005.
    """
    record = vit_report(vit_folder)
    change = largest_difference(record, vit_report(vit_folder, as_shipped=True))
    return save_record("vit", record | {"tolerance": max(0.005, 3 * change)}, runs)


def _things_centred(
    votes: np.ndarray, weights: np.ndarray, rows: np.ndarray, centres: np.ndarray, chosen: list[Scene]
) -> float:
    """Share of all things of the scenes whose mean vote is within `NEAR` of their centre.

    votes, centres: [M, 2] of tokens; weights, rows: [M], how much each counts and its scene. A thing is known by its
    centre; one without a token of its own counts as missed.
    """
    marks = np.concatenate([rows[:, None], centres.round(5)], axis=1)
    things, which = np.unique(marks, axis=0, return_inverse=True)
    sums = np.zeros((len(things), 2))
    np.add.at(sums, which.ravel(), weights[:, None] * votes)
    means = sums / np.bincount(which.ravel(), weights)[:, None]
    near = np.linalg.norm(means - things[:, 1:], axis=1) <= NEAR
    return float(near.sum() / sum(len(scene.things) for scene in chosen))


def _grid(count: int) -> Tensor:
    """Row and column of each cell of a square grid: [count, 2]."""
    steps = torch.arange(round(count**0.5), dtype=torch.float32)
    return torch.cartesian_prod(steps, steps)


def _places(sample: Sample, n: int) -> np.ndarray:
    """Row and column of each pooled token's middle, in cells: [K·N, 2]."""
    count, cells = sample.tokens.shape[:2]
    return pool_embeddings(_grid(cells)[None], n)[0].tile(count, 1).numpy()


def _centres(sample: Sample, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which pooled tokens lie on one thing alone, bool [K·N], the centre (x, y) of that thing, [K·N, 2], and the share
    of their cells that is on a thing, [K·N]."""
    things = torch.from_numpy(sample.truth.kind >= FIRST["kind"])
    boxes, alone = pooled_boxes(things, torch.from_numpy(sample.truth.box), n)
    share = things.float().unflatten(1, (n, -1)).mean(-1)
    return alone.flatten().numpy(), boxes[..., :2].flatten(0, 1).numpy(), share.flatten().numpy()
