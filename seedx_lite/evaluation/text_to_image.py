"""Pictures of the text-to-image foundation, read back and compared with the scenes that their captions describe."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from seedx_lite.artifacts import MANIFEST, PROGRESS, check, read_manifest
from seedx_lite.data.drawn import scenes
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.presets import Preset
from seedx_lite.world.language import canonical_caption
from .records import load_record, save_record
from .scene_reader import compare, differs, disagreement, read_scenes, summarise

RECORD = "text_to_image"
STEPS, GUIDANCE = 25, 3.0
SCENES = 512  # of each split
SHEET = 100  # pictures of the sheet that is looked at


def load_pipeline(folder: str | Path):
    """The folder as plain diffusers opens it, in float32, silent. Raises FileNotFoundError or ValueError that names
    the file if one of an artifact's is missing or damaged."""
    from diffusers import StableDiffusionXLPipeline

    if Path(folder, MANIFEST).is_file():  # else it is not ours, and diffusers judges it
        check(Path(folder))
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_captions(
    pipe, captions: Sequence[str], seed: int = 0, steps: int = STEPS, guidance: float = GUIDANCE, batch: int = 32
) -> list[np.ndarray]:
    """A picture uint8 [H, W, 3] for each caption; its noise depends on its position in the list and `seed` only.

    Raises ValueError for a caption with words that the tokenizer does not know, naming them.
    """
    check_words(pipe.tokenizer, captions)
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    pictures: list[np.ndarray] = []
    for start in tqdm(range(0, len(captions), batch), desc="pictures from captions", disable=len(captions) <= batch):
        part = list(captions[start : start + batch])
        numbers = range(start, start + len(part))
        generators = [torch.Generator().manual_seed(1_000_000 * seed + number) for number in numbers]
        drawn = pipe(
            part, height=size, width=size, num_inference_steps=steps, guidance_scale=guidance, generator=generators
        )
        pictures += [np.asarray(image) for image in drawn.images]
    return pictures


def check_words(tokenizer, captions: Sequence[str]) -> None:
    """Raises ValueError that names the words of a caption that the tokenizer does not know."""
    from seedx_lite.world.language import words

    for caption in captions:
        if unknown := [w for w in words(caption) if tokenizer.convert_tokens_to_ids(w) == tokenizer.unk_token_id]:
            raise ValueError(
                f"caption {caption!r}: unknown words {', '.join(unknown)}; say it in the world's vocabulary"
            )


def evaluate(
    preset: Preset, folders: Mapping[str, Path], seed: int = 0, count: int = SCENES, runs: str | Path = "runs"
) -> Path:
    """Draws full captions of test scenes and of held-out combinations, has both readers read them, and writes the
    record `RECORD` and beside it the sheet of pictures (.png). Returns its path. folders: sdxl, reader, reader_2."""
    pipe = load_pipeline(folders["sdxl"])
    readers = {name: SceneReader.from_pretrained(folders[name]) for name in ("reader", "reader_2")}
    size = (preset.image_size, preset.image_size)
    record: dict[str, Any] = {
        "preset": preset.name,
        "seed": seed,
        "artifacts": {name: read_manifest(folder)["id"] for name, folder in folders.items()},
        "scenes": count,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "tolerance": 0.03,
    }
    for split in ("test", "composition"):
        wanted = scenes(split, count, "narrow", size)
        pictures = draw_captions(pipe, [canonical_caption(scene) for scene in wanted], seed)
        readings = {name: read_scenes(reader, pictures) for name, reader in readers.items()}
        pairs = {name: zip(wanted, read, strict=True) for name, read in readings.items()}
        compared = {name: [compare(*pair, by_place=True) for pair in each] for name, each in pairs.items()}
        record[split] = {name: summarise(comparisons) for name, comparisons in compared.items()}
        record[split]["disagreement"] = disagreement(*readings.values())
        if split == "test":
            record["f1"] = [c.f1 for c in compared["reader"]]
            differ = [differs(c) for c in map(compare, *readings.values())]
            record["sheet"] = {"indices": list(range(min(SHEET, count))), "readers_differ": differ[:SHEET]}
            sheet = pictures[:SHEET]
    record["progress"] = progress(folders["sdxl"], readers["reader"], preset)
    path = save_record(RECORD, record, runs)
    tile(sheet).save(path.with_suffix(".png"))
    return path


def progress(sdxl: Path, reader: SceneReader, preset: Preset) -> list[dict[str, Any]]:
    """The curve of the training: by samples seen, what the sheets that it drew on its way show of their captions."""
    size, rows = preset.image_size, []
    training = json.loads((sdxl / "unet" / "training.json").read_text())
    for file in (sdxl / "unet").glob(PROGRESS):
        pictures = untile(np.asarray(Image.open(file).convert("RGB")), size)
        wanted = scenes("validation", min(len(pictures), preset.data.validation_scenes), "narrow", (size, size))
        read = read_scenes(reader, pictures[: len(wanted)])
        told = summarise([compare(*pair, by_place=True) for pair in zip(wanted, read, strict=True)])
        steps = int(file.stem.removeprefix(PROGRESS.split("*")[0]))
        rows.append({"steps": steps, "samples": steps * training["config"]["batch_size"], **told})
    return sorted(rows, key=lambda row: row["steps"])


def untile(sheet: np.ndarray, size: int) -> list[np.ndarray]:
    """The pictures [size, size, 3] of a sheet that is filled row by row."""
    rows, columns = sheet.shape[0] // size, sheet.shape[1] // size
    cells = sheet.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    return list(cells.reshape(rows * columns, size, size, 3))


def tile(pictures: Sequence[np.ndarray], columns: int = 20) -> Image.Image:
    """Pictures side by side in rows, without gaps."""
    rows = [list(pictures[start : start + columns]) for start in range(0, len(pictures), columns)]
    rows[-1] += [np.full_like(pictures[0], 255)] * (columns - len(rows[-1])) if len(rows) > 1 else []
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))


def ceilings(preset: str, seed: int = 0, runs: str | Path = "runs") -> dict[str, Any] | None:
    """What the reader reports on true renders and on VAE round trips (record `reader`), to be printed beside any other
    figure of its; None where that was not measured."""
    record = load_record("reader", preset, seed, runs)
    return record and {name: record["reader"][name] for name in ("renders", "composition", "vae")}
