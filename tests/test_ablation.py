"""A grid at the size of a test: run, stopped, resumed, read."""

import json
import re

import pytest
import torch

from seedx_lite.ablation import detokenizer as ablation
from seedx_lite.ablation import grid as grids
from seedx_lite.artifacts import read_manifest
from seedx_lite.evaluation.variants import STRENGTHS
from seedx_lite.models.detokenizer import SDXLAdapterWithLatentImage, read_adapter
from seedx_lite.training.detokenizer import Variant, stage1
from seedx_lite.training.loop import TrainingStopped

COUNTS = {"test": 4, "crowded": 3, "composition": 3, "broad": 3, "validation": 3, "edits": 4, "captions": 2}
SMALL = {"n64": (Variant(), 2), "condition": (Variant(condition=True), 1), "n256": (Variant(vit_down=1), 1)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def grid(runs):
    return ablation.Cells("smoke", runs=runs, variants=SMALL, counts=COUNTS)


@pytest.fixture(scope="module")
def measured(grid):
    return {cell: grid.cell(*cell) for cell in grid.cells}


def test_cells_of_stage_2_are_of_one_main_model(grid, measured, monkeypatch):
    """Bug: cells with a condition image that stay as they were when the model they start from is trained anew."""
    names = ("n64", "condition", "main_condition")
    before = {name: grid.identity(name, 0) for name in names}
    monkeypatch.setattr(ablation, "find", lambda *_: grid.folders["vit"])  # another model
    assert [name for name in names if grid.identity(name, 0) != before[name]] == ["condition", "main_condition"]


def test_a_main_model_that_was_trained_again_is_measured_again(grid, measured, monkeypatch):
    """Bug: numbers of yesterday's weights beside those of today, of the same configuration."""
    assert grid._done("main_n64", 0) == measured["main_n64", 0]
    monkeypatch.setattr(ablation, "find", lambda *_: grid.folders["vit"])  # another model
    assert grid._done("main_n64", 0) is None


def test_another_resampler_is_another_cell(grid, runs):
    """Bug: cells of another depth counted as done, and paired with those that are trained now."""
    deeper = ablation.Cells("smoke", ["resampler.depth=3"], runs, SMALL, COUNTS)
    assert deeper.identity("n64", 0) != grid.identity("n64", 0)


def test_a_rate_that_diverges_is_out(grid, monkeypatch):
    """Bug: a grid that tries a rate which stops the training again and again, and never gets further."""

    def trial(rate):
        if rate > 1e-3:
            raise TrainingStopped("step 7: loss 1e9")
        return rate

    assert grid._tried(trial, (5e-4, 1e-3, 2e-3)) == [5e-4, 1e-3, grids.DIVERGED]
    monkeypatch.setattr(grid, "_swept", lambda name: {"losses": [grids.DIVERGED] * 2})
    with pytest.raises(ValueError, match=r"n64: training stopped itself at each learning rate"):
        grid.learning_rate("n64")


def test_seeds_run_side_by_side():
    grid = {"a": (Variant(), 2), "b": (Variant(), 1)}
    assert grids.in_turn(grid, most=5) == [("a", 0), ("b", 0), ("a", 1)]
    assert grids.in_turn(grid, most=1) == [("a", 0), ("b", 0)]


def test_cells_tell_of_all_sets_and_both_budgets(measured):
    """Bugs: a seed that changes nothing; weights of half the steps that are those of all."""
    first, second = measured["n64", 0], measured["n64", 1]
    assert set(first["sets"]) == {"test", "crowded", "composition", "broad"} and "f1" in first["captions"]
    assert first["sets"]["test"]["psnr"] != second["sets"]["test"]["psnr"]
    assert first["sets"]["broad"]["psnr"] != first["half"]["broad"]["psnr"]
    edits = measured["condition", 0]["sets"]
    assert edits["condition_on"]["outside_error"] != edits["condition_off"]["outside_error"]
    assert len(measured["condition", 0]["first_edits"]["numbers"]["thing_iou"]) == COUNTS["edits"]
    assert [row["strength"] for row in measured["condition", 0]["disagreement"]] == list(STRENGTHS)


def test_cells_stand_on_the_same_foundations(runs, measured, grid):
    """Bug: the foundations of another seed, or another main model, under the cells of each seed."""
    upstream = [read_manifest(runs / "smoke" / f"cell-n64-seed{seed}")["upstream"] for seed in (0, 1)]
    assert upstream[0] == upstream[1]
    started = read_manifest(runs / "smoke" / "cell-condition-seed0")["upstream"]
    assert started["detokenizer-stage1"] == read_manifest(stage1(grid.preset, runs=runs))["id"]


def test_stage_2_goes_on_from_stage_1(runs, measured, grid):
    """Bugs: a U-Net that is not the main model's; a condition image that is never shown, so that its weights stay 0."""
    first = read_adapter(stage1(grid.preset, runs=runs), grid.folders["sdxl"])
    trained = read_adapter(runs / "smoke" / "cell-condition-seed0", grid.folders["sdxl"])
    assert isinstance(trained, SDXLAdapterWithLatentImage) and trained.config["full_ft"]
    weight = trained.unet.conv_in.weight
    assert weight.shape[1] == 8 and weight[:, 4:].abs().max() > 0
    assert torch.nn.functional.cosine_similarity(weight[:, :4].flatten(), first.unet.conv_in.weight.flatten(), 0) > 0.9


def test_what_is_done_is_not_done_again(grid, measured, monkeypatch):
    monkeypatch.setattr(grid, "measured", None)
    assert grid.cell("n64", 1) == measured["n64", 1]
    monkeypatch.setattr(grid, "trial", None)
    grid.gather()
    rate = grid.learning_rate("n64")
    monkeypatch.setitem(grid.variants, "given", (Variant(learning_rate=3e-3), 1))
    assert grid.learning_rate("given") == 3e-3, "a rate that is given is not tried"
    for file in (grid.runs / "smoke" / "cells").glob("*.json"):
        file.rename(file.with_suffix(".away"))
    assert grid.cell("n64", 1) == measured["n64", 1], "from the record of the whole grid"
    assert grid.learning_rate("n64") == rate, "likewise: an interrupted grid does not try learning rates again"
    for file in (grid.runs / "smoke" / "cells").glob("*.away"):
        file.rename(file.with_suffix(".json"))


def test_a_stopped_grid_tells_what_is_missing(grid, measured):
    wanted = grid.variants | {"n32": (Variant(vit_down=8), 1)}
    path = ablation.Cells("smoke", runs=grid.runs, variants=wanted, counts=COUNTS).gather()
    record = json.loads(path.read_text())
    assert record["missing"] == ["n32/0"] and record["cells"]["n64"]["1"] == measured["n64", 1]
    assert {told["verdict"] for told in record["verdicts"]} == {"unfinished"}
    assert record["ceilings"]["test"]["psnr"]["mean"] > 0 and "success" in record["ceilings"]["edits"]


def test_cells_of_another_version_are_refused(grid, measured):
    other = ablation.Cells("smoke", ["training.cell.steps=5"], grid.runs, SMALL, COUNTS)
    for look in (lambda: other.cell("n64", 0), other.check):  # the latter before a training begins
        with pytest.raises(ValueError, match=r"detokenizer-n64-seed0\.json is of another version of the grid"):
            look()


def test_the_record_of_another_version_is_run_again(grid, measured):
    """Bug: cells of other foundations stand in one table with those of today."""
    path = grid.gather()
    assert grid.outdated() == []
    record = json.loads(path.read_text())
    record["cells"]["n64"]["1"]["identity"] = "of yesterday"
    path.write_text(json.dumps(record))
    assert grid.outdated() == ["n64/1"]
    path.unlink()


def test_ceilings_are_measured_once(grid, measured, monkeypatch):
    """Bugs: minutes for ceilings at each call of the grid; those of other foundations, kept."""
    first = json.loads(grid.gather().read_text())
    monkeypatch.setattr(grid, "about", lambda: {"ceilings": "anew"})
    again = grid.surroundings()
    assert again["ceilings"] == first["ceilings"] and again["foundation"] == first["foundation"]
    monkeypatch.setattr(grid, "measured_with", lambda: ["other foundations"])
    assert grid.surroundings()["ceilings"] == "anew"


def test_several_processes_and_a_variant_of_your_own(tmp_path, capsys, monkeypatch):
    """Bugs: cells of other processes that are lost, or that all train their own foundations; the way that notebook 03
    shows for a new variant is not heard by a grid that is open already."""
    shared = ("detokenizer", "smoke", ["ablation_seeds=1"], tmp_path)
    record = json.loads(grids.run(*shared, processes=2, only=["n64", "n32"]).read_text())
    assert record["cells"].keys() == {"n64", "n32"} and record["cells"]["n32"]["0"]["sets"]["test"]["psnr"]["mean"] > 0
    assert "n32, seed 0: scene F1" in capsys.readouterr().out
    monkeypatch.setitem(ablation.DETOKENIZERS, "n16", (Variant(vit_down=16), 1))
    again = json.loads(grids.run(*shared, processes=2, only=["n16"]).read_text())
    assert again["cells"].keys() == {"n64", "n32", "n16"} and again["cells"]["n32"] == record["cells"]["n32"]


def test_means_are_over_shared_seeds():
    """Bug: a variant of three seeds beside one of five, so that the table compares seeds."""

    def cells(*values):
        return {str(seed): {"sets": {"test": {"f1": {"mean": value}}}} for seed, value in values}

    record = {"cells": {"a": cells((0, 0.1), (1, 0.2), (2, 0.9)), "b": cells((0, 0.3), (1, 0.4))}}
    assert grids.shared_seeds(record, ["a", "b"]) == [0, 1] and grids.shared_seeds(record, ["a", "c"]) == []
    assert grids.over_seeds(record, "a", "test", "f1", seeds=[0, 1]) == [0.1, 0.2]
    assert grids.over_seeds(record, "a", "test", "f1") == [0.1, 0.2, 0.9]


def test_several_processes_for_one_cell(monkeypatch):
    """Bug: ranks that see other validation scenes choose other learning rates, and train one model with both."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a grid is run by one process; give --processes 2"):
        grids.run("detokenizer", "smoke")


def test_bad_input():
    with pytest.raises(ValueError, match="goes on from the main model; leave out latents, vit_down"):
        Variant(condition=True, vit_down=1, latents=256)
    with pytest.raises(ValueError, match=re.escape("no variant n65; known are main_n64, main_n256")):
        grids.run("detokenizer", "smoke", only=["n65"])
    with pytest.raises(ValueError, match=r"lacks `training\.cell`, `training\.cell_edits`"):
        ablation.Cells("seedx-17b")
