"""How far the scene readers can be trusted: their errors on pictures whose scene is known.

Written to the record `reader`. What the first one reports on VAE round trips is the ceiling of all that a U-Net draws:
with matches by distance for pictures that should be a certain one, by third for those drawn from words.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seedx_lite.artifacts import read_manifest
from seedx_lite.data.drawn import draw_scenes, plain_sky, scenes
from seedx_lite.models.autoencoder import read_vae, round_trips
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.presets import Preset
from seedx_lite.world.scene import Scene
from .images import psnr
from .records import on_threads, save_record
from .scene_reader import compare_all, disagreement, read_scenes, summarise
from .statistics import interval

SCENES, FIRST = 512, 64
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)


def calibrate(preset: Preset, folders: Mapping[str, Path], count: int = SCENES) -> dict[str, Any]:
    """What both readers report on `count` test renders of the narrow mix (`renders`), also without sun and moon
    (`plain_sky`), of the broad one (`broad`), on held-out combinations (`composition`) and on VAE round trips of narrow
    test renders (`vae`, with its PSNR) and of the held-out combinations (`vae_composition`); under `by_place` the same
    with matches by third. folders: reader, reader_2, sdxl. `thresholds`: F1 on validation scenes by the least
    score of a thing. `first`: means over the first `FIRST` renders, to be checked again within the `tolerance`.
    """
    size, grid = preset.size, round(preset.vit.n_queries**0.5)
    readers = {name: SceneReader.from_pretrained(folders[name]) for name in ("reader", "reader_2")}
    vae = read_vae(folders["sdxl"])
    sets = {"renders": ("test", "narrow"), "broad": ("test", "broad"), "composition": ("composition", "narrow")}
    wanted = {name: scenes(split, count, mix, size) for name, (split, mix) in sets.items()}
    drawn = {name: draw_scenes(split, count, mix, size, grid) for name, (split, mix) in sets.items()}
    pictures = {name: one.pictures for name, one in drawn.items()}
    plain = zip(drawn["renders"].pictures, drawn["renders"].kind, strict=True)
    wanted["plain_sky"], pictures["plain_sky"] = wanted["renders"], np.stack([plain_sky(*pair) for pair in plain])
    for name, of in (("vae", "renders"), ("vae_composition", "composition")):
        wanted[name], pictures[name] = wanted[of], round_trips(vae, pictures[of])
    readings = {r: {name: read_scenes(reader, pictures[name]) for name in pictures} for r, reader in readers.items()}
    record: dict[str, Any] = {
        "preset": preset.name,
        "seed": read_manifest(folders["reader"])["seed"],
        "artifacts": {name: read_manifest(folder)["id"] for name, folder in folders.items()},
        "scenes": count,
        "by_place": {},
    }
    for name, read in readings.items():
        record[name] = {s: summarise(compare_all(wanted[s], read[s])) for s in pictures}
        record["by_place"][name] = {s: summarise(compare_all(wanted[s], read[s], by_place=True)) for s in pictures}
    record["disagreement"] = {s: disagreement(*(read[s] for read in readings.values())) for s in pictures}
    record["vae_psnr"] = interval([psnr(*pair) for pair in zip(pictures["renders"], pictures["vae"], strict=True)])
    record["thresholds"] = _thresholds(readers["reader"], preset, count)
    record["first"], repeats = _repeats(readers["reader"], wanted["renders"][:FIRST], pictures["renders"][:FIRST])
    largest = max(abs(record["first"][metric] - value) for repeat in repeats for metric, value in repeat.items())
    return record | {"tolerance": max(0.002, 3 * largest)}


def _repeats(reader: SceneReader, wanted: list[Scene], pictures: np.ndarray) -> tuple[dict[str, float], list[dict]]:
    """Means over some pictures, and the same with other numbers of threads and with rounded weights."""

    def means(reader: SceneReader) -> dict[str, float]:
        told = summarise(compare_all(wanted, read_scenes(reader, pictures)))
        return {metric: value["mean"] for metric, value in told.items()}

    repeats = on_threads(lambda: means(reader)).values()
    return means(reader), [*repeats, means(copy.deepcopy(reader).half().float())]


def _thresholds(reader: SceneReader, preset: Preset, count: int) -> dict[str, float]:
    pictures = draw_scenes("validation", count, "narrow", preset.size, 1).pictures
    wanted, result = scenes("validation", count, "narrow", preset.size), {}
    for threshold in THRESHOLDS:
        read = read_scenes(reader, pictures, threshold)
        result[str(threshold)] = float(np.mean([c.f1 for c in compare_all(wanted, read)]))
    return result


def evaluate(preset: Preset, folders: Mapping[str, Path], runs: str | Path = "runs") -> Path:
    """`calibrate`, written to the record `reader`; returns its path."""
    return save_record("reader", calibrate(preset, folders), runs)
