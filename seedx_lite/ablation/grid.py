"""Ablation grids: every cell, a variant trained with a seed, is trained, measured and kept; verdicts follow from all.

    python -m seedx_lite ablate detokenizer

A grid may be stopped at any time and goes on with what is missing. All cells stand on the foundations of seed 0; the
seed of a cell sets data order, noise and initialisation, alike for all variants.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from seedx_lite.artifacts import project_path, read_manifest
from seedx_lite.data.formats import replacing
from seedx_lite.data.pictures import to_sheet
from seedx_lite.evaluation.claims import unlike_pairs, verdicts
from seedx_lite.evaluation.records import SHIPPED, load_record, record_path, save_record, training_minutes
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline
from seedx_lite.presets import TrainConfig, load_preset
from seedx_lite.training.loop import TrainingStopped

PARTS = ("detokenizer", "mllm")  # each a module here, with the class `Cells`
RATES, SWEEP_SEED, SWEEP_SHARE = (5e-4, 1e-3, 2e-3, 4e-3), 100, 4  # learning rates, tried for a quarter of the steps
DIVERGED = 1e9  # the loss of a rate with which training stopped itself


def in_turn(grid: Mapping[str, tuple[Any, int]], most: int) -> list[tuple[str, int]]:
    """Names and seeds in the order in which they run: seed by seed, so that what is there can always be compared.
    most: the largest number of seeds of any variant."""
    return [(name, seed) for seed in range(most) for name, (_, seeds) in grid.items() if seed < seeds]


class Grid:
    """The cells of a preset with all that they share: `folders` by stage, `vit` and `sdxl` among them, and `examiner`.

    variants: by name, what is otherwise than in the preset, and with how many seeds; instead of `usual`.
    counts: of scenes, where fewer than usual are to be measured.
    Raises ValueError for a preset without the trainings that are `needed`.
    """

    record: ClassVar[str]  # name of the record of the whole grid
    claims: ClassVar[tuple[str, ...]]  # of claims.yaml
    usual: ClassVar[dict[str, tuple[Any, int]]]
    mains: ClassVar[dict[str, Any]] = {}  # main models, measured alike, that stand beside the cells
    needed: ClassVar[tuple[str, ...]]
    stages: ClassVar[dict[str, Callable[..., Path]]]  # that all cells stand on

    def __init__(
        self,
        source: str = "lite",
        overrides: Sequence[str] = (),
        runs: str | Path = "runs",
        variants: Mapping[str, tuple[Any, int]] | None = None,
        counts: Mapping[str, int] | None = None,
    ):
        self.preset, self.runs, self.variants = load_preset(source, overrides), runs, variants or self.usual
        self.plain = load_preset(source)  # without the overrides
        if lacking := [f"`training.{name}`" for name in self.needed if getattr(self.preset.training, name) is None]:
            raise ValueError(f"preset {self.preset.name} lacks {', '.join(lacking)}; give their entries")
        self.folders = {name: stage(self.preset, runs=self.runs) for name, stage in self.stages.items()}
        self.open(counts)

    # What a subclass says

    def open(self, counts: Mapping[str, int] | None) -> None:
        """Sets `examiner`, which measures cells, and what else they share beside the foundations."""
        raise NotImplementedError

    def variant(self, name: str) -> Any:
        """What is otherwise than in the preset; it has `changes`."""
        return self.variants[name][0]

    def config(self, name: str) -> TrainConfig:
        """How a variant is trained, but for its learning rate."""
        raise NotImplementedError

    def rates(self, name: str) -> Sequence[float]:
        """Learning rates that are tried."""
        return RATES

    def decides(self, name: str) -> list[Any]:
        """What may differ from run to run and decides the numbers of a variant, beside the seed."""
        raise NotImplementedError

    def trial(self, name: str, config: TrainConfig) -> Callable[[float], float]:
        """What trains a variant with a learning rate, shortly, and returns its loss on validation scenes."""
        raise NotImplementedError

    def measured(self, name: str, seed: int) -> dict[str, Any]:
        """The numbers of a cell, which is trained first: `sets`, and what `finished` tells."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What the record of the whole grid tells beside its cells; `ceilings` among it."""
        raise NotImplementedError

    @classmethod
    def by_contrast(cls, record: Mapping[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
        """The cells of a record as `claims.verdicts` takes them: by variant, seed, set and metric."""
        return {
            name: {int(seed): cell["sets"] for seed, cell in seeds.items()} for name, seeds in record["cells"].items()
        }

    def prepare(self, name: str) -> None:
        """Makes what the training of a variant starts from, if it is missing."""

    # Cells

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Names and seeds of all cells, the main models first."""
        return [(name, 0) for name in self.mains] + in_turn(self.variants, self.preset.ablation_seeds)

    def cell(self, name: str, seed: int) -> dict[str, Any]:
        """The record of a cell, which is trained and measured if need be."""
        self.prepare(name)
        if (found := self._done(name, seed)) is None:
            found = self._store(self._record(name), seed, self.identity(name, seed), self.measured(name, seed))
        return found

    def learning_rate(self, name: str) -> float:
        """That of the variant; else that of its `rates` with which it has the lowest loss on validation scenes after a
        short training."""
        if rate := self.variant(name).learning_rate:
            return rate
        self.prepare(name)
        rates = self.rates(name)
        if (swept := self._swept(name)) is None:
            config = self.config(name)
            short = replace(config, steps=max(1, config.steps // SWEEP_SHARE))
            losses = self._tried(self.trial(name, short), rates)
            swept = {"rates": list(rates), "steps": short.steps, "losses": losses}
            swept = self._store(self._rates(name), SWEEP_SEED, self.identity(name, None), swept)
        if min(swept["losses"]) == DIVERGED:
            raise ValueError(f"{name}: training stopped itself at each learning rate of {list(rates)}; try lower ones")
        return rates[int(np.argmin(swept["losses"]))]

    @staticmethod
    def _tried(trial: Callable[[float], float], rates: Sequence[float]) -> list[float]:
        """The losses of trials; `DIVERGED` where a training has stopped itself, as it would again and again."""
        losses = []
        for rate in rates:
            try:
                losses.append(trial(rate))
            except TrainingStopped as error:
                print(f"learning rate {rate:g} is out: {error}")
                losses.append(DIVERGED)
        return losses

    def gather(self) -> Path:
        """Writes the record of all cells that are there, and the verdicts that they allow; returns its path."""
        told: dict[str, Any] = {"preset": self.preset.name, "seed": 0, "tolerance": 0.0, "cells": {}, "missing": []}
        told["artifacts"] = self.foundations()
        told["versions"] = {name: version(name) for name in ("torch", "diffusers", "numpy", "pillow")}
        told["rates"] = {name: swept for name in self.variants if (swept := self._swept(name))}
        for name, seed in self.cells:
            if (cell := self._done(name, seed)) is None:
                told["missing"].append(f"{name}/{seed}")
            else:
                told["cells"].setdefault(name, {})[str(seed)] = cell
                told["artifacts"] |= {name: cell["artifact"]} if name in self.mains else {}
        told |= self.surroundings()
        judged = verdicts(self.by_contrast(told), told["ceilings"], self.claims)
        told["verdicts"] = [asdict(one) | {"told": str(one)} for one in judged]
        if unlike := unlike_pairs(told, self.claims):
            print(f"trained in unlike precisions, though compared: {', '.join(unlike)}; move one away to train it anew")
        return save_record(self.record, told, self.runs)

    def surroundings(self) -> dict[str, Any]:
        """What `about` tells; from the record of the whole grid where nothing has changed that decides it."""
        identity = _digest(self.measured_with())
        stored = load_record(self.record, self.preset.name, 0, self.runs) or {}
        if stored.get("about", {}).get("identity") == identity:
            return {name: stored[name] for name in ("about", *stored["about"]["names"])}
        told = self.about()
        return told | {"about": {"identity": identity, "names": [*told]}}

    def foundations(self) -> dict[str, str]:
        """The id of each folder that all cells share."""
        return {name: read_manifest(folder)["id"] for name, folder in self.folders.items()}

    def measured_with(self) -> list[Any]:
        """The foundations of all cells, and how pictures are drawn and counted."""
        raise NotImplementedError

    def identity(self, name: str, seed: int | None) -> str:
        """Of everything that decides a cell's numbers, or for no seed those of the sweep."""
        return _digest([self.decides(name), seed, list(self.rates(name)), SWEEP_SHARE])

    def outdated(self) -> list[str]:
        """Cells in the record of the whole grid that are of another version: of other foundations, another training or
        another way to measure. They are run again."""
        whole = self._gathered("cells")
        stored = [(name, seed, whole.get(name, {}).get(str(seed))) for name, seed in self.cells]
        return [f"{n}/{s}" for n, s, cell in stored if cell and cell["identity"] != self.identity(n, s)]

    def check(self) -> None:
        """Raises ValueError that names a file of `runs` that is of another version."""
        for cell in self.cells:
            self._done(*cell)
        for name in self.variants:
            self._swept(name)

    def finished(self, folder: Path, seconds: float) -> dict[str, Any]:
        """What every cell tells of its training, in `folder`, and of what measuring took."""
        run = json.loads((folder / "training.json").read_text())
        told = {"learning_rate": run["config"]["learning_rate"], "artifact": read_manifest(folder)["id"]}
        told["seconds"] = {"training": 60 * training_minutes(run), "measuring": seconds}
        return told | {name: run[name] for name in ("hardware", "dtype")} | {"threads": torch.get_num_threads()}

    def pipeline(self, adapter: Path) -> DetokenizerPipeline:
        """The de-tokenizer in a folder, on the foundations, without progress bars."""
        pipe = DetokenizerPipeline.from_artifacts(self.folders["vit"], self.folders["sdxl"], adapter)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def keep_sheet(self, name: str, seed: int, pictures: Iterable[np.ndarray]) -> None:
        """Writes the sheet of a cell."""
        with replacing(_sheet(self.record, name, seed, self.preset.name, self.runs)) as draft:
            to_sheet(list(pictures)).save(draft, "JPEG", quality=90, subsampling=0)

    # What is kept

    def _record(self, name: str) -> str:
        return f"cells/{self.record}-{name}"

    def _rates(self, name: str) -> str:
        return f"{self._record(name)}-rates"

    def _done(self, name: str, seed: int) -> dict[str, Any] | None:
        """The record of a cell that was measured here, or that is in the record of the whole grid."""
        stored = self._gathered("cells").get(name, {}).get(str(seed))
        return self._either(self._record(name), seed, self.identity(name, seed), stored)

    def _swept(self, name: str) -> dict[str, Any] | None:
        """The record of a variant's learning rates, likewise."""
        stored = self._gathered("rates").get(name)
        return self._either(self._rates(name), SWEEP_SEED, self.identity(name, None), stored)

    def _either(self, record: str, seed: int, identity: str, stored: dict[str, Any] | None) -> dict[str, Any] | None:
        found = self._found(record, seed, identity) or stored
        return found if found and found["identity"] == identity else None

    def _gathered(self, what: str) -> dict[str, Any]:
        """The `cells` in the record of the whole grid, by variant and seed, or the `rates`, by variant."""
        return (load_record(self.record, self.preset.name, 0, self.runs) or {}).get(what, {})

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


def _digest(told: list[Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def shared_seeds(record: Mapping[str, Any], names: Iterable[str]) -> list[int]:
    """The seeds that all of some variants have in a record: means over these can be compared."""
    there = [set(map(int, record["cells"].get(name, {}))) for name in names]
    return sorted(set.intersection(*there)) if there else []


def over_seeds(
    record: Mapping[str, Any],
    name: str,
    where: str,
    metric: str,
    part: str = "sets",
    seeds: Collection[int] | None = None,
) -> list[float]:
    """A metric on a set, for each seed of a variant in a record, or of VAE round trips for the name `ceiling`; nan
    where nothing was found that it could be counted on. part: `half` for the weights at half of the steps. seeds: which
    of them (all)."""
    if name == "ceiling":
        cells = [{part: record["ceilings"]}]
    else:
        cells = [one for seed, one in record["cells"][name].items() if seeds is None or int(seed) in seeds]
    return [cell[part][where].get(metric, {}).get("mean", float("nan")) for cell in cells]


# Part, preset, overrides, runs and variants, of which a notebook may have added some: what every process needs to know
Shared = tuple[str, str, tuple[str, ...], str, tuple[tuple[str, tuple[Any, int]], ...]]


@lru_cache(maxsize=1)
def _opened(part: str, source: str, overrides: tuple[str, ...], runs: str, variants: tuple) -> Grid:
    return import_module(f"seedx_lite.ablation.{part}").Cells(source, overrides, runs, dict(variants))


def _run_sweep(shared: Shared, name: str) -> str:
    return f"{name}: learning rate {_opened(*shared).learning_rate(name):g}"


def _run_cell(shared: Shared, name: str, seed: int) -> str:
    cell = _opened(*shared).cell(name, seed)
    f1 = cell["sets"]["test"]["f1"]["mean"]
    return f"{name}, seed {seed}: scene F1 {f1:.3f}, {cell['seconds']['training'] / 60:.1f} min of training"


def run(
    part: str,
    source: str = "lite",
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    processes: int = 1,
    only: Sequence[str] = (),
) -> Path:
    """Runs all cells of a part that are missing, of the variants `only` (none: of all), and gathers; returns the path
    of the record.

    processes: cells at a time, among which the cores are shared out. Raises ValueError for an unknown variant, for
    stored cells of another version, and where several processes were launched for one cell, before any training.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a grid is run by one process; give --processes 2 to run two cells at a time")
    variants = import_module(f"seedx_lite.ablation.{part}").Cells.usual
    shared = (part, str(source), tuple(overrides), str(runs), tuple(variants.items()))
    grid = _opened(*shared)  # trains the foundations once, if they are missing
    known = [*grid.mains, *grid.variants]
    if unknown := sorted(set(only) - set(known)):
        raise ValueError(f"no variant {', '.join(unknown)}; known are {', '.join(known)}")
    grid.check()
    if outdated := grid.outdated():
        print(f"stored by another version of the grid or its foundations, to be run again: {', '.join(outdated)}")
    todo = [cell for cell in grid.cells if not only or cell[0] in only]
    mains = [cell for cell in todo if cell[0] in grid.mains]
    for cell in mains:
        print(_run_cell(shared, *cell), flush=True)
    todo = todo[len(mains) :]
    sweeps = [(name,) for name in dict.fromkeys(name for name, _ in todo)]
    context, threads = multiprocessing.get_context("spawn"), max(1, torch.get_num_threads() // processes)
    with ExitStack() as stack:
        do: Callable[..., Iterable[str]] = map
        if processes > 1:
            pool = ProcessPoolExecutor(processes, context, torch.set_num_threads, (threads,))
            do = stack.enter_context(pool).map
        for function, tasks in ((_run_sweep, sweeps), (_run_cell, todo)):
            for line in do(function, [shared] * len(tasks), *zip(*tasks, strict=True)) if tasks else ():
                print(line, flush=True)
    return grid.gather()


def sheet_path(record: str, name: str, seed: int, preset: str, runs: str | Path = "runs") -> Path:
    """The sheet of a cell. Raises FileNotFoundError if there is none."""
    path, shipped = _sheet(record, name, seed, preset, runs), project_path(SHIPPED) / record / f"{name}-seed{seed}.jpg"
    for place in (path, shipped) if preset == "lite" else (path,):
        if place.is_file():
            return place
    raise FileNotFoundError(f"{path} is missing; `python -m seedx_lite ablate {record}` makes it")


def ship_sheets(runs: str | Path = "runs") -> list[Path]:
    """Copies the sheets of the cells of `lite` to where they are committed."""
    copied = []
    for record in PARTS:
        target = project_path(SHIPPED) / record
        found = sorted(_sheet(record, "*", 0, "lite", runs).parent.glob(f"{record}-*.jpg"))
        if found:
            target.mkdir(parents=True, exist_ok=True)
        copied += [Path(shutil.copyfile(path, target / path.name.removeprefix(f"{record}-"))) for path in found]
    return copied


def _sheet(record: str, name: str, seed: int, preset: str, runs: str | Path) -> Path:
    return project_path(runs) / preset / "cells" / f"{record}-{name}-seed{seed}.jpg"
