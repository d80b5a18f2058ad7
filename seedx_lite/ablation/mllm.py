"""Drawing by a language model compared: the number of queries, the connector, the coupling (claims C, D and E).

A variant of your own is one more entry in `MODELS`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from seedx_lite.artifacts import find, read_manifest
from seedx_lite.evaluation.drawing import GUIDANCES, DrawingExaminer
from seedx_lite.evaluation.variants import GUIDANCE, STEPS
from seedx_lite.models.detokenizer import read_adapter
from seedx_lite.models.mllm import ContinuousLVLM
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.models.vit import VisionTransformerWithAttnPool
from seedx_lite.pipelines.assistant import SeedX
from seedx_lite.presets import TrainConfig
from seedx_lite.training import detokenizer
from seedx_lite.training import mllm as stage
from seedx_lite.training.foundations import sdxl
from seedx_lite.training.llama import llama
from seedx_lite.training.mllm import Batches, MLLMVariant, mllm, new_layout, pretraining
from seedx_lite.training.reader import reader
from seedx_lite.training.tuning import NOISE, SCENES, Imagined, Tuning, tuned
from seedx_lite.training.vit import vit
from .grid import SWEEP_SEED, Grid

# What is otherwise than in the preset, and with how many seeds. Targets are standardised in all, since pooling to fewer
# embeddings shrinks their variance, and with it the squared error.
MODELS: dict[str, tuple[MLLMVariant | Tuning, int]] = {
    "q64": (MLLMVariant(standardise=True), 5),
    "q256": (MLLMVariant(n=256, standardise=True), 5),
    "deep": (MLLMVariant(connector="deep", standardise=True), 5),
    "tuned_vit": (Tuning(), 5),
    "tuned_mllm": (Tuning(features="mllm"), 5),
    "wide": (MLLMVariant(connector="wide", standardise=True), 3),
    "flow": (MLLMVariant(connector="flow", standardise=True), 3),
    "tuned_noisy": (Tuning(features="noisy"), 3),
    "deep_flow": (MLLMVariant(connector="deep_flow", standardise=True), 1),
}
ARMS, MATCHED = ("tuned_mllm", "tuned_vit"), ("coverage", "spread")  # of claim E, and what is compared at one F1
TUNING_RATES = (1e-4, 2.5e-4, 5e-4, 1e-3)  # a tuning goes on from a finished training
SHOWN = 8  # of the first test captions, in the sheet of a cell


class Cells(Grid):
    """The grid of language models, and of de-tokenizers tuned on the main one; counts as of `DrawingExaminer`."""

    record, claims, usual = "mllm", ("C", "D", "E"), MODELS
    needed = ("cell_mllm", "cell_tuned", "mllm")
    stages: ClassVar = {
        "vit": vit,
        "sdxl": sdxl,
        "llama": llama,
        "reader": reader,
        "detokenizer-stage1": detokenizer.stage1,
        "detokenizer-unpooled": detokenizer.stage1_unpooled,
    }

    def open(self, counts: Mapping[str, int] | None) -> None:
        self.adapters = {
            self.preset.n_embeddings: "detokenizer-stage1",
            self.preset.vit.n_queries: "detokenizer-unpooled",
        }
        decoders = {n: self.pipeline(self.folders[name]) for n, name in self.adapters.items()}
        judge = SceneReader.from_pretrained(self.folders["reader"])
        self.examiner = DrawingExaminer(self.preset, decoders, judge, counts)

    def config(self, name: str) -> TrainConfig:
        training = self.preset.training
        return training.cell_tuned if isinstance(self.variant(name), Tuning) else training.cell_mllm

    def rates(self, name: str) -> Sequence[float]:
        return TUNING_RATES if isinstance(self.variant(name), Tuning) else super().rates(name)

    def learning_rate(self, name: str) -> float:
        """Tunings share the rate of that on real embeddings: they are to differ in nothing but what they are shown."""
        shared = isinstance(self.variant(name), Tuning) and ARMS[1] in self.variants
        return super().learning_rate(ARMS[1] if shared else name)

    def prepare(self, name: str) -> None:
        if isinstance(self.variant(name), Tuning):
            mllm(self.preset, runs=self.runs)

    def decides(self, name: str) -> list[Any]:
        variant, (made, *how) = self.variant(name), self.measured_with()
        cell = [type(variant).__name__, made, variant.changes, self.config(name).recipe, self.preset.mllm.recipe, *how]
        if isinstance(variant, Tuning):  # it goes with the main model, which may have been trained anew
            main = find("mllm", self.preset.name, 0, self.runs)
            cell += [main and read_manifest(main)["id"], NOISE, SCENES, GUIDANCES]
        return cell

    def trial(self, name: str, config: TrainConfig) -> Callable[[float], float]:
        variant = self.variant(name)

        def trained(rate: float) -> Path:
            return self._trained(SWEEP_SEED, config, replace(variant, learning_rate=rate), f"{name}-rate{rate:g}")

        if isinstance(variant, Tuning):
            parts = detokenizer.load_parts(self.folders["vit"], self.folders["sdxl"])
            samples = Imagined(self.preset, parts, variant.features, self._assistant(), self.runs, "validation")
            return lambda rate: detokenizer.validation_loss(read_adapter(trained(rate), self.folders["sdxl"]), samples)
        tower = VisionTransformerWithAttnPool.from_pretrained(self.folders["vit"])
        layout, split = new_layout(self.preset, variant), "validation"
        parts = pretraining(self.preset, layout, self.runs, split, drawing=True)
        batches = Batches(parts, layout, tower, read_manifest(self.folders["vit"])["id"], self.runs, split=split)
        return lambda rate: stage.validation_loss(ContinuousLVLM.from_pretrained(trained(rate)), batches)

    def measured(self, name: str, seed: int) -> dict[str, Any]:
        variant = replace(self.variant(name), learning_rate=self.learning_rate(name))
        folder = self._trained(seed, self.config(name), variant, name)
        began, examiner = time.perf_counter(), self.examiner
        if isinstance(variant, Tuning):
            seedx = SeedX.from_artifacts(**self._assistant())
            pipe = self.pipeline(folder)
            told = examiner.measure_decoder(pipe, seedx, seed)
            shown = examiner.draw(pipe, seedx.imagine(examiner.captions["test"][:SHOWN]), seed)
        else:
            seedx = self._seedx(folder, variant)
            told = {"sets": examiner.measure(seedx, seed)}
            half = detokenizer.half_folder(self.preset, f"cell-mllm-{name}", seed, self.runs)
            if half.is_dir():  # it is not, where the cell came with the project
                before = SeedX(ContinuousLVLM.from_pretrained(half), seedx.processor.layout, seedx.detokenizer)
                told["half"] = examiner.measure(before, seed, ("test",))
            shown = examiner.draw(seedx.detokenizer, seedx.imagine(examiner.captions["test"][:SHOWN], seed), seed)
        self.keep_sheet(name, seed, shown)
        return told | self.finished(folder, time.perf_counter() - began)

    def measured_with(self) -> list[Any]:
        return [[*self.foundations().values()], self.examiner.counts, STEPS, GUIDANCE]

    def about(self) -> dict[str, Any]:
        told = {"steps": STEPS, "guidance": GUIDANCE, "counts": self.examiner.counts}
        ceilings = self.examiner.ceilings()
        ceilings["matched"] = {"coverage": ceilings["test"]["coverage"], "spread": ceilings["prompts"]["spread"]}
        return told | {"ceilings": ceilings, "averaged": self.examiner.averaged()}

    @classmethod
    def by_contrast(cls, record: Mapping[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
        """The arms of claim E have a set `matched`, too, of the seeds in which `matched` finds a common F1."""
        told = super().by_contrast(record)
        first, second = (record["cells"].get(name, {}) for name in ARMS)
        for seed in first.keys() & second.keys():
            if found := matched(first[seed]["curve"], second[seed]["curve"]):
                for name, values in zip(ARMS, found, strict=True):
                    told[name][int(seed)] = told[name][int(seed)] | {"matched": values}
        return told

    def _assistant(self) -> dict[str, Path]:
        folders = {name: self.folders[name] for name in ("vit", "sdxl")}
        return folders | {"mllm": mllm(self.preset, runs=self.runs), "adapter": self.folders["detokenizer-stage1"]}

    def _trained(self, seed: int, config: TrainConfig, variant: MLLMVariant | Tuning, cell: str) -> Path:
        cell = f"cell-mllm-{cell}"
        if isinstance(variant, Tuning):
            return tuned(self.preset, seed, variant, cell, config, self.runs)
        return mllm(self.preset, seed, runs=self.runs, variant=variant, cell=cell, config=config)

    def _seedx(self, folder: Path, variant: MLLMVariant) -> SeedX:
        adapter = self.folders[self.adapters[variant.n or self.preset.n_embeddings]]
        return SeedX.from_artifacts(folder, self.folders["vit"], self.folders["sdxl"], adapter)


def matched(ours: Sequence[Mapping], other: Sequence[Mapping], lowest: bool = False) -> tuple[dict, dict] | None:
    """Coverage and spread of two de-tokenizers at the highest scene F1 that both reach, each on the way to its own best
    guidance (or at the lowest); None where one is better with any guidance than the other with its best. ours, other:
    rows over rising guidance, with `f1`, `coverage` and `spread`."""
    sides = []
    for rows in (ours, other):
        rising = rows[: 1 + int(np.argmax([row["f1"]["mean"] for row in rows]))]  # beyond, guidance costs both
        sides.append(sorted(rising, key=lambda row: row["f1"]["mean"]))
    low, high = (find(rows[end]["f1"]["mean"] for rows in sides) for find, end in ((max, 0), (min, -1)))
    if low > high:
        return None

    def at_level(rows: Sequence[Mapping]) -> dict[str, dict[str, float]]:
        f1 = [row["f1"]["mean"] for row in rows]
        values = {what: [row[what]["mean"] for row in rows] for what in MATCHED}
        return {what: {"mean": float(np.interp(low if lowest else high, f1, some))} for what, some in values.items()}

    return at_level(sides[0]), at_level(sides[1])
