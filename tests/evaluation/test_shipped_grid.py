"""What is committed of the grids: they are whole and stand on the weights of the repository, pictures are there, and
their verdicts follow from their cells."""

from dataclasses import asdict

import pytest
import torch

from seedx_lite.ablation import mllm
from seedx_lite.ablation.detokenizer import MAINS, STAGES, Cells
from seedx_lite.ablation.grid import over_seeds, sheet_path
from seedx_lite.artifacts import SHIPPED, project_path, read_manifest
from seedx_lite.evaluation.claims import read_rules, unlike_pairs, verdicts
from seedx_lite.evaluation.editing import edited, held_edits
from seedx_lite.evaluation.reconstruction import Target, judge
from seedx_lite.evaluation.records import load_record
from seedx_lite.evaluation.statistics import agreement
from seedx_lite.evaluation.variants import EDITING, FIRST
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline

FLOORS = {"main_n64": (0.90, 0.90, 0.75), "main_n256": (0.93, 0.93, 0.85)}  # of the ceiling: scene F1, colour, pose
# On four times as many people it is 0.83. There half as many training steps again, with the loss of the second stage,
# make it 0.84, and 12 steps of sampling 0.85; on as many validation scenes 12 steps make 0.84 of 0.83. Guidance 3, of
# which scene F1 is the highest there, makes 0.84 of 0.82 on these: none of them is surely beyond the floor.
SHORT = pytest.mark.xfail(strict=True, reason="0.82 [0.75, 0.88] of 126 people")

both = pytest.mark.parametrize("grid", [Cells, mllm.Cells], ids=lambda grid: grid.record)


@pytest.fixture(scope="module")
def record():
    return load_record(Cells.record, "lite", runs="nowhere")


def test_cells_and_main_models_stand_on_the_committed_weights(record):
    """Bugs: a foundation trained again, and cells of the old one beside it, or a main model of old numbers."""
    shipped = project_path(SHIPPED) / "lite"
    assert {"vit", "sdxl", "reader"} <= record["artifacts"].keys()
    for name, identifier in record["artifacts"].items():
        assert identifier == read_manifest(shipped / STAGES.get(name, name))["id"], name
    assert set(MAINS) & set(record["cells"]) == set(STAGES) & set(record["artifacts"])


@pytest.mark.parametrize(
    ("name", "metric", "floor"),
    [
        pytest.param(name, metric, floor, marks=SHORT if (name, metric) == ("main_n256", "pose") else ())
        for name, floors in FLOORS.items()
        for metric, floor in zip(("f1", "colour", "pose"), floors, strict=True)
    ],
)
def test_main_models_reach_their_floors(record, name, metric, floor):
    """Bug: weights committed that do less than the book says."""
    reached, ceiling = (over_seeds(record, one, "test", metric)[0] for one in (name, "ceiling"))
    assert reached >= floor * ceiling, reached / ceiling


def test_the_second_stage_reaches_its_floors(record):
    """Bugs: a condition image that restores little, or holds the old content fast; a stage 2 that has forgotten how to
    draw from embeddings alone."""
    on, off = (record["cells"]["main_condition"]["0"]["sets"][f"condition_{side}"] for side in ("on", "off"))
    assert on["outside_error"]["mean"] <= off["outside_error"]["mean"] / 3
    assert on["success"]["mean"] >= 0.80 * record["ceilings"]["edits"]["success"]["mean"]
    stages = [over_seeds(record, name, "test", "f1")[0] for name in ("main_n64", "main_condition")]
    assert stages[1] >= stages[0] - 0.02


def test_the_second_stage_has_the_recorded_numbers(record):
    """Bug: a check of the edits that other weights pass, or these with the condition left out."""
    shipped = project_path(SHIPPED) / "lite"
    pipe = DetokenizerPipeline.from_artifacts(*(shipped / one for one in ("vit", "sdxl", "detokenizer-stage2")))
    pipe.set_progress_bar_config(disable=True)
    edits, drawn = held_edits(FIRST, (64, 64))
    targets = [Target.of(edit.target) for edit in edits]
    stored = record["cells"]["main_condition"]["0"]["first_edits"]

    def check(condition: bool = True) -> str:
        pictures = edited(pipe, drawn, condition, 0, **EDITING)
        return agreement(stored["numbers"], judge(targets, pictures), stored["tolerance"])

    assert (result := check()) == "agrees", result
    assert check(condition=False) != "agrees"
    weight = pipe.unet.conv_in.weight
    with torch.no_grad():
        weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert check() != "agrees"


@both
def test_every_cell_has_its_pictures_and_its_learning_rate(grid):
    """Bugs: a cell that was never run; numbers whose pictures no one can look at; a rate that no trial chose."""
    record = load_record(grid.record, "lite", runs="nowhere")
    there = [(name, int(seed)) for name, seeds in record["cells"].items() for seed in seeds]
    wanted = {(name, seed) for name, (_, seeds) in grid.usual.items() for seed in range(seeds)}
    assert set(there) == wanted | {(name, 0) for name in grid.mains} and not record["missing"]
    for name, seed in there:
        assert sheet_path(grid.record, name, seed, "lite", "nowhere").is_file()
        if name not in grid.mains:
            variant = grid.usual[name][0]
            rate = variant.learning_rate
            if rate is None:  # tunings share the one of that on real embeddings
                tried = record["rates"][mllm.ARMS[1] if isinstance(variant, mllm.Tuning) else name]
                rate = min(zip(tried["losses"], tried["rates"], strict=True))[1]
            assert record["cells"][name][str(seed)]["learning_rate"] == rate


@both
def test_the_readme_tells_the_verdicts(grid):
    """Bug: a claim in the README that the record does not carry."""
    readme = project_path("README.md").read_text(encoding="utf-8")
    for one in load_record(grid.record, "lite", runs="nowhere")["verdicts"]:
        rows = [row for row in readme.splitlines() if row.startswith(f"| {one['claim']}, {one['part']}: ")]
        assert len(rows) == 1, (one["claim"], one["part"])
        cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
        effect = one["effect"]
        told = effect and f"{effect['mean']:+.4f} [{effect['low']:+.4f}, {effect['high']:+.4f}]".replace("-", "−")
        margin = "–" if one["margin"] is None else f"{one['margin']:.4f}"
        assert cells[3:] == [told or "–", margin, str(len(one["differences"])), f"**{one['verdict']}**"]


@both
def test_cells_are_compared_in_one_precision(grid):
    """Bug: a difference between two machines in place of one between two variants."""
    record = load_record(grid.record, "lite", runs="nowhere")
    assert not unlike_pairs(record, grid.claims)
    first, second = read_rules()[grid.claims[0]]["parts"].popitem()[1]["contrast"]
    record["cells"][first]["0"] |= {"dtype": "bf16"}
    record["cells"][second]["0"] |= {"dtype": "fp32"}
    assert f"{first} and {second}, seed 0" in unlike_pairs(record, grid.claims)


@both
def test_verdicts_follow_from_the_cells(grid):
    """Bug: numbers of today under a verdict of yesterday."""
    record = load_record(grid.record, "lite", runs="nowhere")
    again = [asdict(one) for one in verdicts(grid.by_contrast(record), record["ceilings"], grid.claims)]
    assert [one["verdict"] for one in again] == [one["verdict"] for one in record["verdicts"]]
    for one, stored in zip(again, record["verdicts"], strict=True):
        if one["effect"]:
            assert one["effect"]["low"] == pytest.approx(stored["effect"]["low"], abs=2e-4)


def test_cells_of_the_language_model_stand_on_the_committed_weights():
    """Bug: a foundation trained again, and cells of the old one beside it."""
    record = load_record(mllm.Cells.record, "lite", runs="nowhere")
    assert record["artifacts"].keys() == mllm.Cells.stages.keys()
    for name, identifier in record["artifacts"].items():
        assert identifier == read_manifest(project_path(SHIPPED) / "lite" / name)["id"], name
