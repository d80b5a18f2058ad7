"""De-tokenizers compared: the number of visual embeddings, what is trained, the condition image (claims A, B and F).

A variant of your own is one more entry in `DETOKENIZERS`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

from seedx_lite.artifacts import find, read_manifest
from seedx_lite.evaluation.variants import CAPTION_STEPS, EDITING, GUIDANCE, STEPS, Examiner
from seedx_lite.models.detokenizer import read_adapter
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.pipelines.text_to_image import load_pipeline
from seedx_lite.presets import TrainConfig
from seedx_lite.training import detokenizer
from seedx_lite.training.detokenizer import Variant
from seedx_lite.training.foundations import sdxl
from seedx_lite.training.reader import reader
from seedx_lite.training.vit import vit
from .grid import SWEEP_SEED, Grid

# What is otherwise than in the preset, and with how many seeds. N in the names is that of 256 tokens, as in `lite`.
DETOKENIZERS: dict[str, tuple[Variant, int]] = {
    "n64": (Variant(), 5),
    "n256": (Variant(vit_down=1), 5),
    "n32": (Variant(vit_down=8), 5),
    "n64_full": (Variant(full_ft=True), 5),
    "condition": (Variant(condition=True), 5),
    # Starts from other values than the others of stage 1, since its table of latents is larger
    "n256_latents256": (Variant(vit_down=1, latents=256), 3),
    # Claim B again, on pictures of half as many pixels a side, at the rate that both had chosen on the clean ones
    "n64_soft": (Variant(soften=2, learning_rate=1e-3), 3),
    "n64_full_soft": (Variant(soften=2, learning_rate=1e-3, full_ft=True), 3),
}
# The main models, trained longer and with one seed, and their stages.
MAIN = "main_n64"
STAGES = {MAIN: "detokenizer-stage1", "main_n256": "detokenizer-unpooled", "main_condition": "detokenizer-stage2"}
MAINS: dict[str, tuple[Variant, Callable[..., Path]]] = {
    MAIN: (Variant(), detokenizer.stage1),
    "main_n256": (Variant(vit_down=1), detokenizer.stage1_unpooled),
    "main_condition": (Variant(condition=True), detokenizer.stage2),
}
SHOWN = ("crowded", 8)  # whose first pictures the sheet of a cell shows
AT_HALF = ("crowded", "broad")  # sets that are also measured with the weights at half of the steps


class Cells(Grid):
    """The grid of de-tokenizers; counts as of `Examiner`."""

    record, claims, usual, mains = "detokenizer", ("A", "B", "B_soft", "F"), DETOKENIZERS, MAINS
    needed = ("cell", "cell_edits", "detokenizer_edits")
    stages: ClassVar = {"vit": vit, "sdxl": sdxl, "reader": reader}

    def open(self, counts: Mapping[str, int] | None) -> None:
        self.drawing, judge = load_pipeline(self.folders["sdxl"]), SceneReader.from_pretrained(self.folders["reader"])
        self.examiner = Examiner(self.preset, self.drawing.vae, judge, counts)

    def variant(self, name: str) -> Variant:
        return MAINS[name][0] if name in MAINS else super().variant(name)

    def config(self, name: str) -> TrainConfig:
        training, condition = self.preset.training, self.variant(name).condition
        if name in MAINS:
            return training.detokenizer_edits if condition else training.detokenizer
        return training.cell_edits if condition else training.cell

    def prepare(self, name: str) -> None:
        if self.variant(name).condition:
            detokenizer.stage1(self.preset, runs=self.runs)

    def decides(self, name: str) -> list[Any]:
        made, *how = self.measured_with()
        cell = [name in MAINS, made, self.variant(name).changes, self.config(name).recipe, *how]
        if self.preset.resampler != self.plain.resampler:  # no foundation tells of it
            cell.append(asdict(self.preset.resampler))
        if self.variant(name).condition:  # it goes on from the main model, which may have been trained anew
            started = find("detokenizer-stage1", self.preset.name, 0, self.runs)
            cell += [started and read_manifest(started)["id"], detokenizer.STAGE2, EDITING]
        return cell

    def trial(self, name: str, config: TrainConfig) -> Callable[[float], float]:
        variant = self.variant(name)
        parts = detokenizer.load_parts(self.folders["vit"], self.folders["sdxl"])
        kind = detokenizer.EditPairs if variant.condition else detokenizer.Reconstructions
        options = {} if variant.condition else {"soften": variant.soften}
        samples = kind(self.preset, parts, variant.n(self.preset), self.runs, "validation", **options)

        def loss(rate: float) -> float:
            tuned = replace(variant, learning_rate=rate)
            folder = self._trained(SWEEP_SEED, config, tuned, f"cell-{name}-rate{rate:g}")
            return detokenizer.validation_loss(read_adapter(folder, self.folders["sdxl"]), samples)

        return loss

    def measured(self, name: str, seed: int) -> dict[str, Any]:
        variant, examiner = self.variant(name), self.examiner
        if name in MAINS:
            folder = MAINS[name][1](self.preset, seed, runs=self.runs)
        else:
            tuned = replace(variant, learning_rate=self.learning_rate(name))
            folder = self._trained(seed, self.config(name), tuned, f"cell-{name}")
        began = time.perf_counter()
        pipe, half = self.pipeline(folder), detokenizer.half_folder(self.preset, f"cell-{name}", seed, self.runs)
        told: dict[str, Any] = {"sets": examiner.measure(pipe, seed)}
        if variant.condition:
            told["sets"] |= examiner.measure_edits(pipe, seed)
        if half.is_dir():  # it is not, where the cell came with the project
            earlier = self.pipeline(half)
            told["half"] = examiner.measure(earlier, seed, AT_HALF)
            told["half"] |= examiner.measure_edits(earlier, seed) if variant.condition else {}
        if not variant.condition:  # a U-Net with other channels cannot draw from captions any more
            drawing = type(self.drawing)(**self.drawing.components | {"unet": pipe.unet})
            told["captions"] = examiner.measure_captions(drawing, seed)
        if name == MAIN:
            told["sampling"] = examiner.sampling(pipe)
        if seed == 0:
            told["first"] = examiner.measure_first(pipe, seed)
            if variant.condition:
                told["first_edits"] = examiner.measure_first_edits(pipe, seed)
                told["disagreement"] = examiner.measure_disagreement(pipe, seed)
        which, count = SHOWN
        self.keep_sheet(name, seed, examiner.reconstructions(pipe, which, seed, count))
        return told | self.finished(folder, time.perf_counter() - began)

    def measured_with(self) -> list[Any]:
        return [[*self.foundations().values()], self.examiner.counts, STEPS, CAPTION_STEPS, GUIDANCE]

    def about(self) -> dict[str, Any]:
        told = {"steps": STEPS, "guidance": GUIDANCE, "counts": self.examiner.counts}
        told["foundation"] = {"captions": self.examiner.measure_captions(self.drawing, 0)}
        return told | {"ceilings": self.examiner.ceilings()}

    def _done(self, name: str, seed: int) -> dict[str, Any] | None:
        """Nothing of a main model that was trained again since."""
        found = super()._done(name, seed)
        made = find(STAGES[name], self.preset.name, 0, self.runs) if name in MAINS and found else None
        return None if made and read_manifest(made)["id"] != found["artifact"] else found

    @classmethod
    def by_contrast(cls, record: Mapping[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
        """The variant with a condition image is there once with it (`condition_on`) and once without, both under the
        set `edits`."""
        told = super().by_contrast(record)
        for side in ("condition_on", "condition_off"):
            told[side] = {
                seed: {"edits": sets[side]} for seed, sets in told.get("condition", {}).items() if side in sets
            }
        return told

    def _trained(self, seed: int, config: TrainConfig, variant: Variant, cell: str) -> Path:
        stage = detokenizer.stage2 if variant.condition else detokenizer.stage1
        return stage(self.preset, seed, runs=self.runs, variant=variant, cell=cell, config=config)
