"""Ablation grids: every cell, a variant trained with a seed, is trained, measured and kept; verdicts follow from all.

    python -m seedx_lite ablate detokenizer

A grid may be stopped at any time and goes on with what is missing. All cells stand on the foundations of seed 0; the
seed of a cell sets data order, noise and initialisation, alike for all variants. A variant of your own is one more
entry in `DETOKENIZERS`.
"""

import hashlib
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedx_lite.artifacts import find, project_path, read_manifest
from seedx_lite.data.formats import replacing
from seedx_lite.data.pictures import to_sheet
from seedx_lite.evaluation import variants
from seedx_lite.evaluation.claims import verdicts
from seedx_lite.evaluation.records import SHIPPED, load_record, record_path, save_record, training_minutes
from seedx_lite.models.detokenizer import read_adapter
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline
from seedx_lite.pipelines.text_to_image import load_pipeline
from seedx_lite.presets import TrainConfig, load_preset
from seedx_lite.training import detokenizer
from seedx_lite.training.detokenizer import Variant
from seedx_lite.training.foundations import sdxl
from seedx_lite.training.reader import reader
from seedx_lite.training.vit import vit

RECORD = "detokenizer"
# What is otherwise than in the preset, and with how many seeds. N in the names is that of 256 tokens, as in `lite`.
DETOKENIZERS: dict[str, tuple[Variant, int]] = {
    "n64": (Variant(), 5),
    "n256": (Variant(vit_down=1), 5),
    "n32": (Variant(vit_down=8), 5),
    "n64_full": (Variant(full_ft=True), 5),
    "condition": (Variant(condition=True), 5),
    "n256_latents256": (Variant(vit_down=1, latents=256), 3),
}
# The main models, trained longer and with one seed, are measured alike and stand beside the cells.
MAIN = "main_n64"
MAINS: dict[str, tuple[Variant, Callable[..., Path]]] = {
    MAIN: (Variant(), detokenizer.stage1),
    "main_n256": (Variant(vit_down=1), detokenizer.stage1_unpooled),
    "main_condition": (Variant(condition=True), detokenizer.stage2),
}
RATES, SWEEP_SEED, SWEEP_SHARE = (5e-4, 1e-3, 2e-3, 4e-3), 100, 4  # learning rates, tried for a quarter of the steps
SHOWN = ("crowded", 8)  # whose first pictures the sheet of a cell shows
AT_HALF = ("crowded", "broad")  # sets that are also measured with the weights at half of the steps


def cells(grid: Mapping[str, tuple[Variant, int]], most: int) -> list[tuple[str, int]]:
    """Names and seeds in the order in which they run: seed by seed, so that what is there can always be compared.
    most: the largest number of seeds of any variant."""
    return [(name, seed) for seed in range(most) for name, (_, seeds) in grid.items() if seed < seeds]


class Grid:
    """A grid of a preset with all that its cells share: foundations, and what measures them.

    counts: of scenes, where they should be fewer than usual; see `Examiner`.
    Raises ValueError for a preset without trainings of cells.
    """

    def __init__(
        self,
        source: str = "lite",
        overrides: Sequence[str] = (),
        runs: str | Path = "runs",
        grid: Mapping[str, tuple[Variant, int]] | None = None,
        counts: Mapping[str, int] | None = None,
    ):
        self.preset, self.runs, self.grid = load_preset(source, overrides), runs, grid or DETOKENIZERS
        training, wanted = self.preset.training, ("cell", "cell_edits", "detokenizer_edits")
        if lacking := [f"`training.{name}`" for name in wanted if getattr(training, name) is None]:
            raise ValueError(f"preset {self.preset.name} lacks {', '.join(lacking)}; give their entries")
        stages = {"vit": vit, "sdxl": sdxl, "reader": reader}
        self.folders = {name: stage(self.preset, runs=runs) for name, stage in stages.items()}
        self.drawing = load_pipeline(self.folders["sdxl"])
        judge = SceneReader.from_pretrained(self.folders["reader"])
        self.examiner = variants.Examiner(self.preset, self.drawing.vae, judge, counts)

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Names and seeds of all cells, the main models first."""
        return [(name, 0) for name in MAINS] + cells(self.grid, self.preset.ablation_seeds)

    def cell(self, name: str, seed: int) -> dict[str, Any]:
        """The record of a cell, which is trained and measured if need be."""
        self._prepare(name)
        if (found := self._done(name, seed)) is None:
            found = self._store(self._record(name), seed, self._identity(name, seed), self._measured(name, seed))
        return found

    def learning_rate(self, name: str) -> float:
        """That of `RATES` with which the variant has the lowest loss on validation scenes after a short training."""
        self._prepare(name)
        if (swept := self._swept(name)) is None:
            swept = self._store(self._rates(name), SWEEP_SEED, self._identity(name, None), self._sweep(name))
        return RATES[int(np.argmin(swept["losses"]))]

    def gather(self) -> Path:
        """Writes the record `RECORD` of all cells that are there, with their sheets beside it, and the verdicts that
        they allow; returns its path."""
        told: dict[str, Any] = {"preset": self.preset.name, "seed": 0, "tolerance": 0.0, "cells": {}, "missing": []}
        told["artifacts"] = {name: read_manifest(folder)["id"] for name, folder in self.folders.items()}
        told |= {"steps": variants.STEPS, "guidance": variants.GUIDANCE, "counts": self.examiner.counts}
        told["versions"] = {name: version(name) for name in ("torch", "diffusers", "numpy", "pillow")}
        told["rates"] = {name: swept for name in self.grid if (swept := self._swept(name))}
        for name, seed in self.cells:
            cell = self._done(name, seed)
            if cell is None:
                told["missing"].append(f"{name}/{seed}")
            else:
                told["cells"].setdefault(name, {})[str(seed)] = cell
                told["artifacts"] |= {name: cell["detokenizer"]} if name in MAINS else {}
        told["ceilings"] = self.examiner.ceilings()
        told["foundation"] = {"captions": self.examiner.measure_captions(self.drawing, 0)}
        told["verdicts"] = [asdict(one) | {"told": str(one)} for one in verdicts(by_contrast(told), told["ceilings"])]
        return save_record(RECORD, told, self.runs)

    def _record(self, name: str) -> str:
        return f"cells/{RECORD}-{name}"

    def _rates(self, name: str) -> str:
        return f"{self._record(name)}-rates"

    def _config(self, name: str) -> TrainConfig:
        training, condition = self.preset.training, self._variant(name).condition
        if name in MAINS:
            return training.detokenizer_edits if condition else training.detokenizer
        return training.cell_edits if condition else training.cell

    def _prepare(self, name: str) -> None:
        """Makes what the training of a variant starts from."""
        if self._variant(name).condition:
            detokenizer.stage1(self.preset, runs=self.runs)

    def _variant(self, name: str) -> Variant:
        return (MAINS[name] if name in MAINS else self.grid[name])[0]

    def _identity(self, name: str, seed: int | None) -> str:
        """Of everything that decides a cell's numbers, or for no seed those of the sweep."""
        made = [read_manifest(folder)["id"] for folder in self.folders.values()]
        cell = [name in MAINS, made, self._variant(name).changes, self._config(name).recipe, self.examiner.counts]
        cell += [variants.STEPS, variants.CAPTION_STEPS, variants.GUIDANCE]
        if self._variant(name).condition:  # it goes on from the main model, which may have been trained anew
            started = find("detokenizer-stage1", self.preset.name, 0, self.runs)
            cell += [started and read_manifest(started)["id"], detokenizer.STAGE2]
        told = [cell, seed, list(RATES), SWEEP_SHARE]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def _done(self, name: str, seed: int) -> dict[str, Any] | None:
        """The record of a cell that was measured here, or that is in the record of the whole grid."""
        stored = self._gathered("cells").get(name, {}).get(str(seed))
        return self._either(self._record(name), seed, self._identity(name, seed), stored)

    def _swept(self, name: str) -> dict[str, Any] | None:
        """The record of a variant's learning rates, likewise."""
        return self._either(
            self._rates(name), SWEEP_SEED, self._identity(name, None), self._gathered("rates").get(name)
        )

    def _either(self, record: str, seed: int, identity: str, stored: dict[str, Any] | None) -> dict[str, Any] | None:
        found = self._found(record, seed, identity) or stored
        return found if found and found["identity"] == identity else None

    def outdated(self) -> list[str]:
        """Cells in the record of the whole grid that are of another version: of other foundations, another training or
        another way to measure. They are run again."""
        whole = self._gathered("cells")
        stored = [(name, seed, whole.get(name, {}).get(str(seed))) for name, seed in self.cells]
        return [f"{n}/{s}" for n, s, cell in stored if cell and cell["identity"] != self._identity(n, s)]

    def _gathered(self, what: str) -> dict[str, Any]:
        """The `cells` in the record of the whole grid, by variant and seed, or the `rates`, by variant."""
        return (load_record(RECORD, self.preset.name, 0, self.runs) or {}).get(what, {})

    def _found(self, record: str, seed: int, identity: str) -> dict[str, Any] | None:
        found = load_record(record, self.preset.name, seed, self.runs)
        if found is not None and found.get("identity") != identity:
            path = record_path(record, self.preset.name, seed, self.runs)
            raise ValueError(
                f"{path} is of another version of the grid or its foundations; move it away to measure anew"
            )
        return found

    def _store(self, record: str, seed: int, identity: str, made: dict[str, Any]) -> dict[str, Any]:
        """Writes a record and returns it as it will be read again, with rounded numbers."""
        about = {"preset": self.preset.name, "seed": seed, "identity": identity, "tolerance": 0.0}
        save_record(record, about | made, self.runs)
        return self._found(record, seed, identity)

    def _trained(self, seed: int, config: TrainConfig, variant: Variant, cell: str) -> Path:
        stage = detokenizer.stage2 if variant.condition else detokenizer.stage1
        return stage(self.preset, seed, runs=self.runs, variant=variant, cell=cell, config=config)

    def _sweep(self, name: str) -> dict[str, Any]:
        variant, config = self._variant(name), self._config(name)
        short = replace(config, steps=max(1, config.steps // SWEEP_SHARE))
        parts = detokenizer.load_parts(self.folders["vit"], self.folders["sdxl"])
        kind = detokenizer.EditPairs if variant.condition else detokenizer.Reconstructions
        options = {} if variant.condition else {"soften": variant.soften}
        samples = kind(self.preset, parts, variant.n(self.preset), self.runs, "validation", **options)
        losses = []
        for rate in RATES:
            tried = replace(variant, learning_rate=rate)
            folder = self._trained(SWEEP_SEED, short, tried, f"cell-{name}-rate{rate:g}")
            losses.append(detokenizer.validation_loss(read_adapter(folder, self.folders["sdxl"]), samples))
        return {"rates": list(RATES), "steps": short.steps, "losses": losses}

    def _measured(self, name: str, seed: int) -> dict[str, Any]:
        variant = self._variant(name)
        if name in MAINS:
            folder = MAINS[name][1](self.preset, seed, runs=self.runs)
        else:
            tuned = replace(variant, learning_rate=self.learning_rate(name))
            folder = self._trained(seed, self._config(name), tuned, f"cell-{name}")
        began = time.perf_counter()
        pipe, half = self._pipeline(folder), detokenizer.half_folder(self.preset, f"cell-{name}", seed, self.runs)
        run = json.loads((folder / "training.json").read_text())
        told = {"learning_rate": run["config"]["learning_rate"], "detokenizer": read_manifest(folder)["id"]}
        told["sets"] = self.examiner.measure(pipe, seed)
        if variant.condition:
            told["sets"] |= self.examiner.measure_edits(pipe, seed)
        if half.is_dir():  # it is not, where the cell came with the project
            told["half"] = self.examiner.measure(self._pipeline(half), seed, AT_HALF)
        if not variant.condition:  # a U-Net with other channels cannot draw from captions any more
            drawing = type(self.drawing)(**self.drawing.components | {"unet": pipe.unet})
            told["captions"] = self.examiner.measure_captions(drawing, seed)
        if name == MAIN:
            told["sampling"] = self.examiner.sampling(pipe)
        if seed == 0:
            told["first"] = self.examiner.measure_first(pipe, seed)
            if variant.condition:
                told["first_edits"] = self.examiner.measure_first_edits(pipe, seed)
                told["disagreement"] = self.examiner.measure_disagreement(pipe, seed)
        which, count = SHOWN
        sheet = to_sheet(self.examiner.reconstructions(pipe, which, seed, count))
        with replacing(_sheet(name, seed, self.preset.name, self.runs)) as draft:
            sheet.save(draft, "JPEG", quality=90, subsampling=0)
        measured = time.perf_counter() - began
        seconds = {"training": 60 * training_minutes(run), "measuring": measured}
        on = {name: run[name] for name in ("hardware", "dtype")} | {"threads": torch.get_num_threads()}
        return told | {"seconds": seconds} | on

    def _pipeline(self, adapter: Path) -> DetokenizerPipeline:
        pipe = DetokenizerPipeline.from_artifacts(self.folders["vit"], self.folders["sdxl"], adapter)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def by_contrast(record: Mapping[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """The cells of a record as `claims.verdicts` takes them: by variant, seed, set and metric; the variant with a
    condition image once with it (`condition_on`) and once without, both under the set `edits`."""
    told: dict[str, dict[int, dict[str, Any]]] = {}
    for name, seeds in record["cells"].items():
        told[name] = {int(seed): cell["sets"] for seed, cell in seeds.items()}
        for side in ("condition_on", "condition_off"):
            if all(side in cell["sets"] for cell in seeds.values()):
                told[side] = {int(seed): {"edits": cell["sets"][side]} for seed, cell in seeds.items()}
    return told


def over_seeds(record: Mapping[str, Any], name: str, where: str, metric: str, part: str = "sets") -> list[float]:
    """A metric on a set, for each seed of a variant in a record, or of VAE round trips for the name `ceiling`; nan
    where nothing was found that it could be counted on. part: `half` for the weights at half of the steps."""
    cells = [{part: record["ceilings"]}] if name == "ceiling" else record["cells"][name].values()
    return [cell[part][where].get(metric, {}).get("mean", float("nan")) for cell in cells]


@lru_cache(maxsize=1)
def _grid(source: str, overrides: tuple[str, ...], runs: str) -> Grid:
    return Grid(source, overrides, runs)


def _run_sweep(source: str, overrides: tuple[str, ...], runs: str, name: str) -> str:
    return f"{name}: learning rate {_grid(source, overrides, runs).learning_rate(name):g}"


def _run_cell(source: str, overrides: tuple[str, ...], runs: str, name: str, seed: int) -> str:
    cell = _grid(source, overrides, runs).cell(name, seed)
    f1 = cell["sets"]["test"]["f1"]["mean"]
    return f"{name}, seed {seed}: scene F1 {f1:.3f}, {cell['seconds']['training'] / 60:.1f} min of training"


def run(
    source: str = "lite",
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    processes: int = 1,
    only: Sequence[str] = (),
) -> Path:
    """Runs all cells that are missing, of the variants `only` (none: of all), and gathers; returns the record's path.

    processes: cells at a time, among which the cores are shared out. Raises ValueError for an unknown variant.
    """
    known = [*MAINS, *DETOKENIZERS]
    if unknown := sorted(set(only) - set(known)):
        raise ValueError(f"no variant {', '.join(unknown)}; known are {', '.join(known)}")
    shared = (str(source), tuple(overrides), str(runs))
    grid = _grid(*shared)  # trains the foundations once, if they are missing
    if outdated := grid.outdated():
        print(f"stored by another version of the grid or its foundations, to be run again: {', '.join(outdated)}")
    todo = [(*shared, *cell) for cell in grid.cells if not only or cell[0] in only]
    mains = [cell for cell in todo if cell[-2] in MAINS]
    for cell in mains:
        print(_run_cell(*cell), flush=True)
    todo = todo[len(mains) :]
    sweeps = list(dict.fromkeys(cell[:-1] for cell in todo))
    context, threads = multiprocessing.get_context("spawn"), max(1, torch.get_num_threads() // processes)
    with ExitStack() as stack:
        do = map
        if processes > 1:
            pool = ProcessPoolExecutor(processes, context, torch.set_num_threads, (threads,))
            do = stack.enter_context(pool).map
        for function, tasks in ((_run_sweep, sweeps), (_run_cell, todo)):
            for line in do(function, *zip(*tasks, strict=True)) if tasks else ():
                print(line, flush=True)
    return grid.gather()


def sheet_path(name: str, seed: int, preset: str, runs: str | Path = "runs") -> Path:
    """The sheet of a cell, with its drawings of the scenes `SHOWN`. Raises FileNotFoundError if there is none."""
    path, shipped = _sheet(name, seed, preset, runs), project_path(SHIPPED) / RECORD / f"{name}-seed{seed}.jpg"
    for place in (path, shipped) if preset == "lite" else (path,):
        if place.is_file():
            return place
    raise FileNotFoundError(f"{path} is missing; `python -m seedx_lite ablate detokenizer` makes it")


def ship_sheets(runs: str | Path = "runs") -> list[Path]:
    """Copies the sheets of the cells of `lite` to where they are committed."""
    target = project_path(SHIPPED) / RECORD
    target.mkdir(parents=True, exist_ok=True)
    found = sorted(_sheet("*", 0, "lite", runs).parent.glob(f"{RECORD}-*.jpg"))
    return [Path(shutil.copyfile(path, target / path.name.removeprefix(f"{RECORD}-"))) for path in found]


def _sheet(name: str, seed: int, preset: str, runs: str | Path) -> Path:
    return project_path(runs) / preset / "cells" / f"{RECORD}-{name}-seed{seed}.jpg"
