"""The records of instruction tuning: does a dialogue follow what is asked, in its first turn and in later ones, and is
an edit done that words ask for?"""

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seedx_lite.data.corpora import pick
from seedx_lite.data.drawn import scenes
from seedx_lite.data.instructions import CHAT, MOST_TURNS, REQUESTS, absent_edit, drawing_turn, reading_turn
from seedx_lite.models.autoencoder import round_trips
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.pipelines.assistant import SeedX
from seedx_lite.pipelines.dialogue import Box, Reply, boxes_of
from seedx_lite.pipelines.text_to_image import draw_captions, load_pipeline
from seedx_lite.presets import Preset
from seedx_lite.world.captions import read_caption
from seedx_lite.world.draw import render
from seedx_lite.world.edits import Edit, sample_chain
from seedx_lite.world.language import canonical_caption
from seedx_lite.world.scene import COLOURS, KINDS, Scene
from .answers import Told, one_of_each
from .any_resolution import COUNT as GRID_SCENES
from .any_resolution import measure_grids, trained_grids
from .detokenizer import tolerance_of
from .editing import edit_ceiling, edited, held_edits, judge_edits, worded_content
from .images import box_iou
from .mllm import FIRST, SCENES, about, measure_detection, measure_questions
from .reconstruction import Target, judge, reconstruct
from .records import on_threads, save_record
from .scene_reader import compare_all, read_scenes, summarise
from .statistics import bootstrap, interval, mean_differences
from .variants import CAPTION_STEPS, EDITING, GUIDANCE, STEPS

CHAT_RECORD, EDIT_RECORD = "sft_chat", "sft_edit"
TALKS = 3  # dialogues about each scene
CHAINS, LENGTH = 128, 5  # chains of edits, and edits in each
SAMPLER = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}


def evaluate_chat(
    preset: Preset, folders: Mapping[str, Path], reader: Path, seed: int = 0, count: int = SCENES, runs="runs"
) -> Path:
    """Measures dialogues about the first scenes of the test split; writes the record `CHAT_RECORD`, returns its path.
    folders: those of `SeedX.from_artifacts`."""
    began, seedx = time.perf_counter(), SeedX.from_artifacts(**folders)
    wanted = scenes("test", min(count, preset.data.test_scenes), "narrow", preset.size)
    shown, instructed = [render(scene) for scene in wanted], Instructed(seedx)
    captions = [canonical_caption(scene) for scene in wanted]
    asked = [[_user(REQUESTS["drawing"][0].format(caption=caption))] for caption in captions]
    drawn = [_picture(reply, preset) for reply in seedx.replies(asked, seed, **SAMPLER)]
    instrument = SceneReader.from_pretrained(reader)
    record = about(preset, folders, reader, seed, len(wanted)) | {
        "tolerance": 0.0,  # answers are compared, not numbers
        "followed": measure_dialogues(seedx, wanted, shown, seed),
        "questions": measure_questions(instructed, wanted, shown),
        "detection": measure_detection(instructed, wanted, shown),
        "drawing": summarise(compare_all(wanted, read_scenes(instrument, drawn), by_place=True)),
        "first": first_answers(seedx, wanted, shown),
        "grids": measure_grids(seedx, trained_grids(folders["mllm"]), Instructed, min(GRID_SCENES, len(wanted))),
    }
    return save_record(CHAT_RECORD, record | {"seconds": time.perf_counter() - began}, runs)


def first_answers(seedx: SeedX, wanted: Sequence[Scene], shown: Sequence[Image.Image]) -> list[str]:
    """What a notebook asks again: a question of each topic about each of the first `FIRST` scenes."""
    asked = one_of_each(wanted[:FIRST])
    return Instructed(seedx).ask([shown[place] for _, place in asked], [question.text for question, _ in asked])


class Instructed:
    """An assistant that is asked by instruction what others are asked in the form of pre-training."""

    def __init__(self, seedx: SeedX):
        self.seedx = seedx

    def ask(self, pictures: Sequence[Image.Image], texts: Sequence[str], blind: bool = False) -> list[str]:
        """As `SeedX.ask`; blind: the question without any picture."""
        asked = [[_user(*([] if blind else [picture]), text)] for picture, text in zip(pictures, texts, strict=True)]
        return [reply.text for reply in self.seedx.replies(asked, max_new_tokens=40)]

    def boxes(self, pictures: Sequence[Image.Image], phrases: Sequence[str]) -> list[tuple[Box, ...] | None]:
        """As `SeedX.boxes`."""
        wording = REQUESTS["find"][0]
        asked = [[_user(one, wording.format(phrase=phrase))] for one, phrase in zip(pictures, phrases, strict=True)]
        return [_boxes(reply) or None for reply in self.seedx.replies(asked, max_new_tokens=40)]


def measure_dialogues(
    seedx: SeedX, wanted: Sequence[Scene], shown: Sequence[Image.Image], seed: int, talks: int = TALKS
) -> dict[str, Told]:
    """Shares of answers that do what is asked, by turn ("1", "2", …) and form, in `talks` dialogues about each scene.
    In each every turn is of a random form, and the model's own answers, right or wrong, are its history."""
    count, wanted, shown = len(wanted), [*wanted] * talks, [*shown] * talks
    histories: list[list[dict[str, Any]]] = [[] for _ in wanted]
    told: dict[str, Told] = {}
    sources = [np.random.default_rng([seed, place]) for place in range(len(wanted))]
    others = [*wanted[1:], wanted[0]]
    for number in range(MOST_TURNS):
        turns = []
        for place, rng in enumerate(sources):
            form = pick(CHAT, rng)
            draws = form == "drawing"
            turn = drawing_turn(others[place], rng) if draws else reading_turn(form, wanted[place], rng)
            turns.append((form, turn))
            histories[place].append(_user(*([shown[place]] if number == 0 else []), turn.question))
        replies = seedx.replies(histories, seed, **SAMPLER)
        rows: dict[str, dict[int, list[bool]]] = {}  # by form and scene, since intervals are over scenes
        for place, ((form, turn), reply) in enumerate(zip(turns, replies, strict=True)):
            right = followed(form, turn.answer, reply, wanted[place])
            for name in (form, "all"):
                rows.setdefault(name, {}).setdefault(place % count, []).append(right)
            histories[place].append(reply.message)
        told[str(number + 1)] = {
            name: bootstrap([(sum(some), len(some)) for some in row.values()]) for name, row in rows.items()
        }
    return told


def followed(form: str, answer: str, reply: Reply, scene: Scene) -> bool:
    """Whether a reply does what a turn of this form asks for. answer: one that would be right. A description counts by
    what it says, not by its wording; boxes are right behind the right kind and colour, where they overlap the true ones
    by a half; a drawing, if there is just one: what it shows is measured apart, as `drawing`."""
    if form == "drawing" or reply.pictures:
        return form == "drawing" and len(reply.pictures) == 1
    if form == "describe":
        try:
            return read_caption(reply.text).content == scene.content
        except ValueError:
            return False
    right, found = _grounded(answer), _grounded(_said(reply))
    if not right:
        return reply.text == answer and not found
    near = [[words == said and box_iou(box, one) >= 0.5 for said, one in found] for words, box in right]
    return len(found) == len(right) and all(map(any, near)) and all(map(any, zip(*near, strict=True)))


def _grounded(text: str) -> list[tuple[set[str], Box]]:
    """The boxes of a text, each with kind and colour before it; none where one is malformed."""
    parts = [part.rpartition("]]")[2].split() for part in text.split("[[")]
    return list(zip(({*part} & {*KINDS, *COLOURS} for part in parts), boxes_of(text) or (), strict=False))


def evaluate_edit(
    preset: Preset, folders: Mapping[str, Path], reader: Path, seed: int = 0, count: int = SCENES, runs="runs"
) -> Path:
    """Measures edits by words on the first edits of the test split; writes the record `EDIT_RECORD` and returns its
    path. Beside ours: the `unchanged` source; what `text_to_image` draws from the target's caption; the de-tokenizer
    with the `real` embeddings of the target; and the `ceiling`, the target through the VAE."""
    began, seedx = time.perf_counter(), SeedX.from_artifacts(**folders)
    count = min(count, preset.data.test_scenes)
    edits, drawn = held_edits(count, preset.size)
    instrument, sources = SceneReader.from_pretrained(reader), [Image.fromarray(picture) for picture in drawn.source]
    replies = seedx.edit(sources, [edit.instruction for edit in edits], seed, **SAMPLER)
    captions = [canonical_caption(edit.target) for edit in edits]
    pictures = {
        "ours": [np.asarray(picture) for picture in _upon(sources, replies)],
        "unchanged": list(drawn.source),
        "text_to_image": draw_captions(load_pipeline(folders["sdxl"]), captions, seed, CAPTION_STEPS, quick=True),
        "real": edited(seedx.detokenizer, drawn, True, seed, **EDITING, quick=True),
    }
    record = about(preset, folders, reader, seed, count)
    made = [bool(reply.pictures) for reply in replies]
    for name, some in pictures.items():
        record[name] = judge_edits(edits, drawn, some, instrument, True, made if name == "ours" else None)
    record["chains"] = measure_chains(seedx, instrument, preset, seed, min(CHAINS, count))
    record["ceiling"] = edit_ceiling(seedx.detokenizer.vae, instrument, count, preset.size, worded=True)
    record["drawn"] = bootstrap([(one, 1) for one in made])
    record["refused"] = measure_refusals(seedx, edits)
    record["first"] = (numbers := first_edits(seedx, edits, seed))

    def repeat(seedx: SeedX) -> dict[str, float]:
        return mean_differences(numbers, first_edits(seedx, edits, seed))

    shipped = SeedX(copy.deepcopy(seedx.model).half().float(), seedx.processor.layout, seedx.detokenizer)
    record["tolerance"] = tolerance_of(on_threads(lambda: repeat(seedx)) | {"float16 weights": repeat(shipped)})
    return save_record(EDIT_RECORD, record | {"seconds": time.perf_counter() - began}, runs)


def measure_refusals(seedx: SeedX, edits: Sequence[Edit]) -> dict[str, float]:
    """The share of instructions that name what is not in the picture, and are answered so, without a picture."""
    asked = [absent_edit(edit.source, np.random.default_rng(place)) for place, edit in enumerate(edits)]
    replies = seedx.edit([render(edit.source) for edit in edits], [turn.question for turn in asked], **SAMPLER)
    told = zip(asked, replies, strict=True)
    return bootstrap([(not reply.pictures and reply.text == turn.answer, 1) for turn, reply in told])


def first_edits(seedx: SeedX, edits: Sequence[Edit], seed: int) -> dict[str, list[float]]:
    """What a notebook draws again: the numbers of `reconstruction.judge` of the first `FIRST` edits."""
    edits = edits[:FIRST]
    sources = [render(edit.source) for edit in edits]
    replies = seedx.edit(sources, [edit.instruction for edit in edits], seed, **SAMPLER)
    made = [np.asarray(picture) for picture in _upon(sources, replies)]
    return judge([Target.of(edit.target) for edit in edits], made)


def measure_chains(
    seedx: SeedX, instrument: SceneReader, preset: Preset, seed: int, count: int
) -> list[dict[str, Any]]:
    """Chains of `LENGTH` edits, each made of the picture before, a row for each step: the share of scenes that are
    `right` in all that words tell of them (`worded_content`), and the `drift`, the mean absolute difference per channel
    to the true picture, in levels. Beside it the de-tokenizer alone, with the embeddings of the true pictures upon its
    own last one (`real`, `real_drift`), and the VAE with the true pictures (`ceiling`, `ceiling_drift`)."""
    chains = [sample_chain(index, LENGTH, "test", size=preset.size) for index in range(count)]
    pictures, vae, rows = [render(chain[0].source) for chain in chains], seedx.detokenizer.vae, []
    alone = pictures
    for step in range(LENGTH):
        edits = [chain[step] for chain in chains]
        replies = seedx.edit(pictures, [edit.instruction for edit in edits], seed + step, **SAMPLER)
        pictures = _upon(pictures, replies)
        wanted = np.stack([np.asarray(render(edit.target)) for edit in edits])
        options = EDITING | {"condition_images": alone}
        drawn = reconstruct(seedx.detokenizer, list(wanted), range(count), seed=seed + step, **options)
        alone, row = [Image.fromarray(picture) for picture in drawn], {"step": step + 1}
        ours = np.stack([np.asarray(one) for one in pictures])
        for name, some in (("", ours), ("real", np.stack(drawn)), ("ceiling", round_trips(vae, wanted))):
            read = read_scenes(instrument, list(some))
            pairs = zip(read, edits, strict=True)
            right = [worded_content(one) == worded_content(edit.target) for one, edit in pairs]
            drift = np.abs(some.astype(float) - wanted).mean((1, 2, 3)).tolist()
            row[name or "right"] = bootstrap([(one, 1) for one in right])
            row[f"{name}_drift".strip("_")] = interval(drift)
        rows.append(row)
    return rows


def _upon(sources: Sequence[Image.Image], replies: Sequence[Reply]) -> list[Image.Image]:
    """What replies have made of pictures: the picture itself where they have drawn none."""
    return [reply.pictures[0] if reply.pictures else source for source, reply in zip(sources, replies, strict=True)]


def _user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def _boxes(reply: Reply) -> tuple[Box, ...]:
    """Its boxes, as fractions."""
    return boxes_of(_said(reply)) or ()


def _said(reply: Reply) -> str:
    """The words of a reply, with the tokens of its boxes."""
    return " ".join(part for part in reply.message["content"] if isinstance(part, str))


def _picture(reply: Reply, preset: Preset) -> np.ndarray:
    """What a reply has drawn; black where it has not."""
    return np.asarray(reply.pictures[0]) if reply.pictures else np.zeros((*preset.size[::-1], 3), np.uint8)
