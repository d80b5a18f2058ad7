"""Pictures of the text-to-image foundation, read back and compared with the scenes that their captions describe."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
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
from .scene_reader import compare_all, differs, disagreement, read_scenes, summarise

RECORD, PILOTS = "text_to_image", "prediction_type"
SCENES = 512  # of each split
SHEET = 100  # pictures of the sheet that is looked at
FIRST = 16  # captions that are drawn again to check a record


def evaluate(
    preset: Preset, folders: Mapping[str, Path], seed: int = 0, count: int = SCENES, runs: str | Path = "runs"
) -> Path:
    """Draws full captions of test scenes and of held-out combinations, has both readers read them, and writes the
    record `RECORD` and beside it the sheet of pictures (.png). Returns its path. folders: sdxl, reader, reader_2."""
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
        record[split] = {name: summarise(comparisons) for name, comparisons in compared.items()}
        for told in record[split].values():
            told.pop("position_error", None)  # captions tell thirds only
        record[split]["disagreement"] = disagreement(*readings.values())
        if split == "test":
            record["f1"] = [c.f1 for c in compared["reader"]]
            differ = [differs(c) for c in compare_all(*readings.values())]
            record["sheet"] = {"indices": list(range(min(SHEET, count))), "readers_differ": differ[:SHEET]}
            sheet = pictures[:SHEET]
            record["tolerance"] = _tolerance(pipe, readers["reader"], wanted[:FIRST], record["f1"][:FIRST], seed)
    record["progress"] = progress(folders["sdxl"], readers["reader"], preset)
    path = save_record(RECORD, record, runs)
    to_sheet(sheet).save(path.with_suffix(".png"))
    return path


def compare_pilots(
    preset: Preset, pipes: Mapping[str, Any], reader: Path, seed: int = 0, count: int = 256, runs: str | Path = "runs"
) -> Path:
    """Writes the record `PILOTS`: what the reader says of pictures of validation captions by each of the pipelines,
    `training.foundations.pilot`, by the name of what they predict. Returns its path."""
    wanted = scenes("validation", min(count, preset.data.validation_scenes), "narrow", preset.size)
    captions = [canonical_caption(scene) for scene in wanted]
    record: dict[str, Any] = {"preset": preset.name, "seed": seed, "scenes": len(wanted)}
    record |= {"artifacts": {"reader": read_manifest(reader)["id"]}, "steps": STEPS, "guidance": GUIDANCE}
    record["tolerance"] = 0.0  # no notebook computes any of this again
    for name, pipe in pipes.items():
        read = read_scenes(SceneReader.from_pretrained(reader), draw_captions(pipe, captions, seed, quick=True))
        record[name] = summarise(compare_all(wanted, read, by_place=True))
        record[name].pop("position_error", None)
    return save_record(PILOTS, record, runs)


def _tolerance(pipe, reader: SceneReader, wanted: list[Scene], f1: list[float], seed: int) -> float:
    """Three times the largest change of the mean F1 of the first pictures when nothing but arithmetic changes: the
    number of threads, the size of a batch, bf16; at least .005."""
    captions = [canonical_caption(scene) for scene in wanted]

    def again(**options: Any) -> float:
        drawn = draw_captions(pipe, captions, seed, **options)
        read = compare_all(wanted, read_scenes(reader, drawn), by_place=True)
        return float(np.mean([told.f1 for told in read]))

    means = [*on_threads(again).values(), again(batch=5), again(quick=True)]
    return max(0.005, 3 * max(abs(mean - np.mean(f1)) for mean in means))


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
