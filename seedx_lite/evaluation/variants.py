"""One de-tokenizer of a comparison, measured: what the scene reader, pixels and small parts say of its pictures.

Four sets of scenes to reconstruct: `test`; `crowded`, with three things; `composition`, with combinations that no
training showed; and `broad`, in looks that de-tokenizers are not tuned on. And edits, for one that takes a condition
image. Each has its ceiling: the same numbers for VAE round trips.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image

from seedx_lite.data.drawn import scenes
from seedx_lite.models.autoencoder import round_trips
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline
from seedx_lite.pipelines.text_to_image import draw_captions
from seedx_lite.presets import Preset
from seedx_lite.world.draw import render
from seedx_lite.world.language import canonical_caption
from seedx_lite.world.scene import Scene, sample_scene
from .detokenizer import measure_tolerance
from .editing import edit_ceiling, edited, held_edits, score_edits, summarise_edits
from .images import psnr, ssim
from .reconstruction import Target, colour_error, judge, part_ious, reconstruct, thing_iou
from .scene_reader import compare_all, read_scenes, summarise
from .statistics import bootstrap, paired

SETS = {  # split, mix, number of things (None: one to three), number of scenes
    "test": ("test", "narrow", None, 512),
    "crowded": ("test", "narrow", 3, 512),
    "composition": ("composition", "narrow", None, 256),
    "broad": ("test", "broad", None, 256),
    "validation": ("validation", "narrow", None, 256),  # on which settings are chosen; no cell is measured on it
}
MEASURED = ("test", "crowded", "composition", "broad")
SAMPLERS, SAMPLER_STEPS = (DDIMScheduler, DPMSolverMultistepScheduler), (4, 6, 8, 12, 25)
EDITS, CAPTIONS = 512, 128  # of edits, and of captions that a fine-tuned U-Net draws from, to see what it forgot
PART_PASSES = 0.5  # overlap that a small part has after a VAE round trip, to be asked for
FIRST = 16  # crowded scenes that are drawn again to check a record
STRENGTHS, PAIRS = (0.0, 0.25, 0.5, 0.75, 1.0), 128  # of a condition image that is not of the scene to be drawn
STEPS, GUIDANCE = 4, 2.0  # more steps change F1 and pose within their intervals, and cost overlap, see `sampling`
CAPTION_STEPS = 12  # as few as text-to-image needs
EDITING = {"steps": STEPS, "guidance": GUIDANCE}  # how edits are drawn


@dataclass(frozen=True)
class Held:
    """The scenes of a set, what they are judged by, and for each which small parts pass the VAE: bool [P]."""

    scenes: list[Scene]
    targets: list[Target]
    passed: list[np.ndarray]
    ceiling: dict[str, dict[str, float]]

    @property
    def pictures(self) -> list[np.ndarray]:
        """uint8 [H, W, 3]"""
        return [target.picture for target in self.targets]


class Examiner:
    """Measures de-tokenizers of one preset that share VAE and U-Net; scenes are drawn once. counts: of scenes, where
    they should be fewer than in `SETS`, and of `edits` and `captions`; of none more than the preset's test scenes."""

    def __init__(self, preset: Preset, vae, reader: SceneReader, counts: Mapping[str, int] | None = None):
        self.size, self.vae, self.reader = preset.size, vae, reader
        wanted = {name: many for name, (*_, many) in SETS.items()} | {"edits": EDITS, "captions": CAPTIONS}
        self.counts = {name: min(many, preset.data.test_scenes) for name, many in wanted.items()} | (counts or {})
        self._held: dict[str, Held] = {}

    def held(self, name: str) -> Held:
        """A set of `SETS`."""
        if name not in self._held:
            split, mix, things, _ = SETS[name]
            chosen = [sample_scene(index, split, mix, self.size, things) for index in range(self.counts[name])]
            targets = [Target.of(scene) for scene in chosen]
            back = list(round_trips(self.vae, np.stack([target.picture for target in targets])))
            passed = [part_ious(*pair) >= PART_PASSES for pair in zip(targets, back, strict=True)]
            self._held[name] = held = Held(chosen, targets, passed, {})
            held.ceiling.update(self.judge(held, back))
        return self._held[name]

    def judge(self, held: Held, drawn: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
        """Means with intervals over the scenes of a set. Of the reader: scene F1, colour, pose, position error (in
        widths), background; `part_iou` of the small parts that pass the VAE, `thing_iou`, `colour_error` (levels),
        `psnr` (dB), `ssim`."""
        told = summarise(compare_all(held.scenes, read_scenes(self.reader, drawn)))
        pairs = list(zip(held.targets, drawn, strict=True))
        parts = [part_ious(*pair)[passed] for pair, passed in zip(pairs, held.passed, strict=True)]
        if any(map(len, parts)):
            told["part_iou"] = bootstrap([(part.sum(), len(part)) for part in parts])
        for measure in (thing_iou, colour_error):
            told[measure.__name__] = bootstrap([(measure(*pair), 1) for pair in pairs])
        for measure in (psnr, ssim):
            told[measure.__name__] = bootstrap([(measure(target.picture, picture), 1) for target, picture in pairs])
        return told

    def ceilings(self) -> dict[str, dict[str, dict[str, float]]]:
        """What VAE round trips reach, by set."""
        told = {name: self.held(name).ceiling for name in MEASURED}
        return told | {"edits": edit_ceiling(self.vae, self.reader, self.counts["edits"], self.size)}

    def reconstructions(
        self, pipe: DetokenizerPipeline, name: str, seed: int, count: int | None = None, steps: int = STEPS
    ) -> list[np.ndarray]:
        """The pictures of a set, or the first of them, drawn from their embeddings; noise by place and seed."""
        pictures = self.held(name).pictures[:count]
        return reconstruct(pipe, pictures, range(len(pictures)), steps, GUIDANCE, seed, quick=True)

    def measure(self, pipe: DetokenizerPipeline, seed: int, sets: Sequence[str] = MEASURED) -> dict[str, Any]:
        """`judge` of reconstructions, by set."""
        return {name: self.judge(self.held(name), self.reconstructions(pipe, name, seed)) for name in sets}

    def sampling(self, pipe: DetokenizerPipeline) -> list[dict[str, Any]]:
        """`judge` of reconstructions of validation scenes for each of `SAMPLERS` and `SAMPLER_STEPS`, with what a
        picture costs: `seconds`, guided, in batches of 32."""
        held, ours, told = self.held("validation"), pipe.scheduler, []
        for sampler in SAMPLERS:
            pipe.scheduler = sampler.from_config(ours.config)
            for steps in SAMPLER_STEPS:
                began = time.perf_counter()
                drawn = self.reconstructions(pipe, "validation", 0, steps=steps)
                seconds = (time.perf_counter() - began) / len(drawn)
                told.append({"sampler": sampler.__name__, "steps": steps, "seconds": seconds})
                told[-1] |= self.judge(held, drawn)
        pipe.scheduler = ours
        return told

    def measure_first(self, pipe: DetokenizerPipeline, seed: int) -> dict[str, Any]:
        """Numbers of each of the first `FIRST` crowded scenes, drawn in float32, and by how much they may differ on
        another machine: what a notebook computes again."""
        return self._redrawable(pipe, self.held("crowded").targets[:FIRST], seed)

    def measure_first_edits(self, pipe: DetokenizerPipeline, seed: int) -> dict[str, Any]:
        """The same of the first `FIRST` edits, with the source as condition image."""
        edits, drawn = held_edits(self.counts["edits"], self.size)
        sources = [Image.fromarray(source) for source in drawn.source[:FIRST]]
        targets = [Target.of(edit.target) for edit in edits[:FIRST]]
        return self._redrawable(pipe, targets, seed, condition_images=sources)

    @staticmethod
    def _redrawable(
        pipe: DetokenizerPipeline, targets: Sequence[Target], seed: int, **conditions: Any
    ) -> dict[str, Any]:
        pictures = [target.picture for target in targets]
        drawn = reconstruct(pipe, pictures, range(len(targets)), STEPS, GUIDANCE, seed, **conditions)
        numbers = judge(targets, drawn)
        tolerance = measure_tolerance(pipe, targets, numbers, seed, STEPS, GUIDANCE, **conditions)
        return {"numbers": numbers, "tolerance": tolerance}

    def measure_edits(self, pipe: DetokenizerPipeline, seed: int) -> dict[str, dict[str, Any]]:
        """`summarise_edits` with the source as condition image (`condition_on`), without (`condition_off`), and the
        mean differences of the two with intervals, edit by edit (`condition_change`)."""
        edits, drawn = held_edits(self.counts["edits"], self.size)
        on, off = (
            score_edits(edits, drawn, edited(pipe, drawn, condition, seed, **EDITING, quick=True), self.reader)
            for condition in (True, False)
        )
        told = {"condition_on": summarise_edits(edits, on), "condition_off": summarise_edits(edits, off)}
        return told | {"condition_change": {metric: paired(on[metric], off[metric]) for metric in on}}

    def measure_disagreement(self, pipe: DetokenizerPipeline, seed: int) -> list[dict[str, Any]]:
        """For each of `STRENGTHS`: scene F1 of what is drawn, and share of right backgrounds, against the scene of
        the embeddings (`embeddings`) and against that of a condition image that has nothing to do with it
        (`condition`)."""
        count = min(PAIRS, self.counts["test"] // 2)
        held = scenes("test", 2 * count, "narrow", self.size)
        told_scenes, shown_scenes = held[:count], held[count:]
        given, shown = ([render(scene) for scene in side] for side in (told_scenes, shown_scenes))
        pictures, told = [np.asarray(picture) for picture in given], []
        for strength in STRENGTHS:
            options = EDITING | {"condition_images": shown, "condition_strength": strength, "quick": True}
            read = read_scenes(self.reader, reconstruct(pipe, pictures, range(len(pictures)), seed=seed, **options))
            sides = {"embeddings": told_scenes, "condition": shown_scenes}
            scores = {name: summarise(compare_all(side, read)) for name, side in sides.items()}
            told.append({"strength": strength})
            told[-1] |= {name: {what: one[what] for what in ("f1", "background")} for name, one in scores.items()}
        return told

    def measure_captions(self, text_to_image, seed: int) -> dict[str, dict[str, float]]:
        """What the reader says of pictures that a `StableDiffusionXLPipeline` draws from full captions."""
        wanted = scenes("test", self.counts["captions"], "narrow", self.size)
        captions = [canonical_caption(scene) for scene in wanted]
        drawn = draw_captions(text_to_image, captions, seed, CAPTION_STEPS, quick=True)
        return summarise(compare_all(wanted, read_scenes(self.reader, drawn), by_place=True))
