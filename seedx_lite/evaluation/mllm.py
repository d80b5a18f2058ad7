"""The record of the multimodal language model: what it reads in held-out scenes, what it draws from their captions.

Reading is judged by the truth about a scene, drawing as in `drawing.py`, beside what the same de-tokenizer draws from
the scene's own embeddings.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from seedx_lite.artifacts import read_manifest
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.models.vit import embed_pictures
from seedx_lite.pipelines.assistant import SeedX
from seedx_lite.presets import Preset
from seedx_lite.world.captions import read_caption
from seedx_lite.world.language import BOX_START, canonical_caption, detections, tokens_to_box
from seedx_lite.world.scene import Scene
from .answers import Told, compare_answers, frequent_answers, one_of_each
from .drawing import SETS, DrawingExaminer
from .images import box_iou
from .records import on_threads, save_record
from .statistics import bootstrap
from .variants import GUIDANCE, STEPS

RECORD = "mllm_main"
SCENES = 512  # of each split
FIRST = 16  # scenes that are read and imagined again to check a record


def evaluate(
    preset: Preset, folders: Mapping[str, Path], reader: Path, seed: int = 0, count: int = SCENES, runs="runs"
) -> Path:
    """Measures on the first scenes of the test split, and drawing also on held-out combinations; writes the record
    `RECORD` and returns its path. folders: those of `SeedX.from_artifacts`."""
    began, seedx = time.perf_counter(), SeedX.from_artifacts(**folders)
    n, count = len(seedx.model.config.image_token_ids), min(count, preset.data.test_scenes)
    judge, counts = SceneReader.from_pretrained(reader), dict.fromkeys(SETS, count)
    examiner = DrawingExaminer(preset, {n: seedx.detokenizer}, judge, counts)
    wanted, shown = examiner.scenes["test"], [Image.fromarray(picture) for picture in examiner.pictures["test"]]
    drawing = {name: {"ours": told} for name, told in examiner.measure(seedx, seed).items()}
    for name in SETS:
        own = examiner.draw(seedx.detokenizer, examiner.real(name, n), seed)
        drawing[name]["ceiling"] = examiner.judge(name, own)
    record = about(preset, folders, reader, seed, count) | {
        "captions": judge_captions(wanted, seedx.describe(shown)),
        "questions": measure_questions(seedx, wanted, shown),
        "detection": measure_detection(seedx, wanted, shown),
        "drawing": drawing,
        "first": _first(seedx, wanted[:FIRST], shown[:FIRST]),
    }
    again = on_threads(lambda: _first(seedx, wanted[:FIRST], shown[:FIRST])["mse"])
    change = max(float(np.abs(np.subtract(mse, record["first"]["mse"])).max()) for mse in again.values())
    record |= {"tolerance": max(0.001, 3 * change), "seconds": time.perf_counter() - began}
    return save_record(RECORD, record, runs)


def about(preset: Preset, folders: Mapping[str, Path], reader: Path, seed: int, count: int) -> dict[str, Any]:
    """What a record says of itself: of which weights and settings it is, and over how many scenes."""
    made = {name: read_manifest(folder)["id"] for name, folder in {**folders, "reader": reader}.items()}
    told = {"preset": preset.name, "seed": seed, "artifacts": made, "scenes": count}
    return told | {"steps": STEPS, "guidance": GUIDANCE}


def judge_captions(wanted: Sequence[Scene], texts: Sequence[str]) -> Told:
    """Captions read back, against their scenes. Shares of scenes: `exact` (all that a full caption tells is right),
    `named` (all kinds and colours are), `readable` (a sentence of the grammar), `sky`, `ground`; `things`: F1 of things
    with place, kind, colour and pose."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for scene, text in zip(wanted, texts, strict=True):
        try:
            said = read_caption(text)
        except ValueError:
            said = None
        true, read = Counter(scene.content[2:]), Counter(said.things if said else ())
        told = {"exact": said is not None and said.content == scene.content, "readable": said is not None}
        named = [sorted((kind, colour) for _, kind, colour, _ in side) for side in (true.elements(), read.elements())]
        told |= {"named": said is not None and named[0] == named[1]}
        told |= {name: said is not None and getattr(said, name) == getattr(scene, name) for name in ("sky", "ground")}
        for name, value in told.items():
            rows.setdefault(name, []).append((value, 1))
        rows.setdefault("things", []).append((2 * (true & read).total() / (true + read).total(), 1))
    return {name: bootstrap(values) for name, values in rows.items()}


def measure_questions(seedx: SeedX, wanted: Sequence[Scene], shown: Sequence[Image.Image]) -> dict[str, Told]:
    """Shares of right answers, by topic and in `all`, to one question of each topic about each scene: of the `model`;
    of the same model `blind`, shown the zero picture, which it never saw, or (`Instructed`) no picture; shown an
    `other` scene; and of the most `frequent` answer to the topic in training. What reading is worth is the distance to
    the best of these three."""
    asked = one_of_each(wanted)
    texts, pictures = [question.text for question, _ in asked], [shown[place] for _, place in asked]
    answers = {
        "model": seedx.ask(pictures, texts),
        "blind": seedx.ask(pictures, texts, blind=True),
        "other": seedx.ask([shown[(place + 1) % len(shown)] for _, place in asked], texts),
        "frequent": frequent_answers(asked, (wanted[0].width, wanted[0].height)),
    }
    return compare_answers(asked, answers)


def measure_detection(seedx: SeedX, wanted: Sequence[Scene], shown: Sequence[Image.Image]) -> Told:
    """Of all things that have a phrase: mean `iou` with the true box, 0 where there is none; `p50`, the share with an
    overlap of a half; `malformed`, the share of answers that are no box."""
    asked = [
        (picture, prompt.partition(" [[")[0], tokens_to_box(BOX_START + answer.removesuffix(" ]]")))
        for scene, picture in zip(wanted, shown, strict=True)
        for prompt, answer in detections(scene)
    ]
    pictures, phrases, boxes = zip(*asked, strict=True)
    found = seedx.boxes(pictures, phrases)
    overlaps = [box_iou(some[0], box) if some else 0.0 for some, box in zip(found, boxes, strict=True)]
    return {
        "iou": bootstrap([(overlap, 1) for overlap in overlaps]),
        "p50": bootstrap([(overlap >= 0.5, 1) for overlap in overlaps]),
        "malformed": bootstrap([(not some, 1) for some in found]),
    }


@torch.no_grad()
def _first(seedx: SeedX, wanted: Sequence[Scene], shown: Sequence[Image.Image]) -> dict[str, Any]:
    """What a notebook computes again: captions of some scenes, and the error of the embeddings that are imagined."""
    ours = seedx.imagine([canonical_caption(scene) for scene in wanted])
    pictures, n = np.stack([np.asarray(picture) for picture in shown]), ours.shape[1]
    errors = (ours - embed_pictures(seedx.detokenizer.vit, pictures, n)).square().mean((1, 2)).tolist()
    return {"captions": seedx.describe(shown), "mse": errors}
