"""Pictures of the text-to-image foundation, read back and compared with the scenes that their captions describe."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from seedx_lite.artifacts import PROGRESS, read_manifest
from seedx_lite.data.drawn import scenes
from seedx_lite.data.pictures import from_sheet, to_sheet
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.pipelines.text_to_image import GUIDANCE, STEPS, draw_captions, load_pipeline
from seedx_lite.presets import Preset
from seedx_lite.world.language import canonical_caption
from seedx_lite.world.scene import Scene
from .records import on_threads, save_record
from .scene_reader import Comparison, compare_all, differs, disagreement, read_scenes, summarise
from .statistics import paired

RECORD, PILOTS = "text_to_image", "prediction_type"
SCENES = 512  # of each split
SHEET = 100  # pictures of the sheet that is looked at
FIRST = 16  # captions that are drawn again to check a record


def evaluate(
    preset: Preset, folders: Mapping[str, Path], seed: int = 0, count: int = SCENES, runs: str | Path = "runs"
) -> Path:
    """Draws full captions of test scenes and of held-out combinations, has both readers read them, and writes the
    record `RECORD` and beside it the sheet of pictures (.png). Returns its path. folders: sdxl, reader, reader_2.

    The record's tolerance is the `mean_difference` that pictures drawn again may have from the sheet's.
    """
    pipe = load_pipeline(folders["sdxl"])
    readers = {name: SceneReader.from_pretrained(folders[name]) for name in ("reader", "reader_2")}
    record: dict[str, Any] = {
        "preset": preset.name,
        "seed": seed,
        "artifacts": {name: read_manifest(folder)["id"] for name, folder in folders.items()},
        "scenes": count,
        "steps": STEPS,
        "guidance": GUIDANCE,
    }
    for split in ("test", "composition"):
        wanted = scenes(split, count, "narrow", preset.size)
        pictures = draw_captions(pipe, [canonical_caption(scene) for scene in wanted], seed)
        readings = {name: read_scenes(reader, pictures) for name, reader in readers.items()}
        compared = {name: compare_all(wanted, read, by_place=True) for name, read in readings.items()}
        record[split] = {name: _told(comparisons) for name, comparisons in compared.items()}
        record[split]["disagreement"] = disagreement(*readings.values())
        if split == "test":
            record["f1"] = [c.f1 for c in compared["reader"]]
            differ = [differs(c) for c in compare_all(*readings.values())]
            record["sheet"] = {"indices": list(range(min(SHEET, count))), "readers_differ": differ[:SHEET]}
            sheet = pictures[:SHEET]
            record["tolerance"] = _tolerance(pipe, wanted[:FIRST], pictures[:FIRST], seed)
    record["progress"] = progress(folders["sdxl"], readers["reader"], preset)
    path = save_record(RECORD, record, runs)
    to_sheet(sheet).save(path.with_suffix(".png"))
    return path


def compare_pilots(
    preset: Preset, folders: Mapping[str, Path], seed: int = 0, count: int = 256, runs: str | Path = "runs"
) -> Path:
    """Writes the record `PILOTS`: what the reader says of pictures of validation captions, drawn in bf16 by the pilots
    of `training.foundations.pilot`, and the difference of their F1, paired by caption. Returns its path.

    folders: `reader`, and the two pilots under the names of what they predict, `epsilon` and `v_prediction`.
    """
    wanted = scenes("validation", min(count, preset.data.validation_scenes), "narrow", preset.size)
    captions, reader = [canonical_caption(scene) for scene in wanted], SceneReader.from_pretrained(folders["reader"])
    record: dict[str, Any] = {
        "preset": preset.name,
        "seed": seed,
        "artifacts": {name: read_manifest(folder)["id"] for name, folder in folders.items()},
        "scenes": len(wanted),
        "steps": STEPS,
        "guidance": GUIDANCE,
        "precision": "bf16",
        "tolerance": 0.0,  # no notebook computes any of this again
    }
    f1 = {}
    for name in ("epsilon", "v_prediction"):
        drawn = draw_captions(load_pipeline(folders[name]), captions, seed, quick=True)
        compared = compare_all(wanted, read_scenes(reader, drawn), by_place=True)
        record[name], f1[name] = _told(compared), [told.f1 for told in compared]
        config = read_manifest(folders[name])["config"]["training"]
        record["training_steps"], record["batch_size"] = config["steps"], config["batch_size"]
    record["v_minus_epsilon"] = {"f1": paired(f1["v_prediction"], f1["epsilon"])}
    return save_record(PILOTS, record, runs)


def _told(compared: list[Comparison]) -> dict[str, dict[str, float]]:
    """`summarise`, without what captions do not tell: more of a place than its third."""
    return {metric: told for metric, told in summarise(compared).items() if metric != "position_error"}


def mean_difference(pictures: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Mean absolute difference of pictures uint8 [H, W, 3], pair by pair, in levels of 0..255."""
    return float(np.abs(np.stack(pictures).astype(float) - np.stack(others)).mean())


def _tolerance(pipe, wanted: list[Scene], pictures: list[np.ndarray], seed: int) -> float:
    """Three times the largest `mean_difference` of the first pictures from themselves when nothing but arithmetic
    changes: the number of threads, the size of a batch, weights rounded to float16; at least .1 of a level."""
    captions = [canonical_caption(scene) for scene in wanted]

    def again(pipe=pipe, **options: Any) -> float:
        return mean_difference(pictures, draw_captions(pipe, captions, seed, **options))

    rounded = copy.deepcopy(pipe).to(torch.float16).to(torch.float32)
    return max(0.1, 3 * max(*on_threads(again).values(), again(batch=5), again(rounded)))


def progress(sdxl: Path, reader: SceneReader, preset: Preset) -> list[dict[str, Any]]:
    """The curve of the training: by samples seen, what the sheets that it drew on its way show of their captions."""
    files = [sdxl / "unet" / phase / "training.json" for phase in ("things", ".")]  # the first if there were two
    parts, rows = [json.loads(file.read_text())["config"] for file in files if file.exists()], []
    for file in (sdxl / "unet").glob(PROGRESS):
        pictures = from_sheet(Image.open(file), preset.image_size)
        wanted = scenes("validation", min(len(pictures), preset.data.validation_scenes), "narrow", preset.size)
        told = summarise(compare_all(wanted, read_scenes(reader, pictures[: len(wanted)]), by_place=True))
        steps = int(file.stem.removeprefix(PROGRESS.split("*")[0]))
        before = min(steps, parts[0]["steps"])
        samples = before * parts[0]["batch_size"] + (steps - before) * parts[-1]["batch_size"]
        rows.append({"steps": steps, "samples": samples, **told})
    return sorted(rows, key=lambda row: row["steps"])
