"""Verdicts, on differences whose verdict is known."""

import pytest

from seedx_lite.evaluation.claims import judge, read_rules, together, verdicts
from seedx_lite.evaluation.statistics import interval


@pytest.mark.parametrize(
    ("want", "low", "high", "verdict"),
    [
        ("more", 0.03, 0.09, "reproduced"),
        ("more", 0.01, 0.09, "inconclusive"),
        ("more", -0.01, 0.01, "no difference"),
        ("more", -0.09, -0.03, "reversed"),
        ("less", -0.09, -0.03, "reproduced"),
        ("less", 0.03, 0.09, "reversed"),
        ("less", -0.09, -0.01, "inconclusive"),
        ("no_less", -0.01, 0.09, "reproduced"),
        ("no_less", -0.03, 0.09, "inconclusive"),
        ("no_less", -0.09, -0.03, "reversed"),
    ],
)
def test_judge(want, low, high, verdict):
    assert judge({"mean": (low + high) / 2, "low": low, "high": high}, 0.02, want) == verdict


def test_judge_refuses_another_wish():
    with pytest.raises(ValueError, match="want: 'better': expected more, less or no_less"):
        judge(interval([0.1, 0.2]), 0.02, "better")


def test_a_claim_needs_all_its_parts():
    assert together(["reproduced", "reproduced"]) == "reproduced"
    assert together(["reproduced", "reversed"]) == "in part"
    assert together(["no difference", "inconclusive"]) == "inconclusive"
    assert together(["no difference", "reversed"]) == "not reproduced"
    assert together(["reproduced", "unfinished"]) == "unfinished"


def _cells(**poses):
    return {name: {s: {"crowded": {"pose": {"mean": p}}} for s, p in enumerate(ps)} for name, ps in poses.items()}


def test_verdicts_are_paired_by_seed():
    """Bug: means of all seeds compared, with the spread between seeds for an error; seeds that only one side has."""
    cells = _cells(n256=[0.5, 0.7, 0.9, 0.2, 0.3], n64=[0.4, 0.6, 0.8, 0.1, 0.2, 0.9])
    told = {(v.claim, v.part): v for v in verdicts(cells, {"crowded": {"pose": {"mean": 0.5}}}, "ABF")}
    posture = told["A", "posture"]
    assert posture.differences == pytest.approx(dict.fromkeys(range(5), 0.1))
    assert posture.margin == pytest.approx(0.01) and posture.verdict == "reproduced"
    assert "pose of n256 - n64, crowded scenes: +0.1000" in str(posture)
    assert {v.verdict for key, v in told.items() if key != ("A", "posture")} == {"unfinished"}


def test_fewer_seeds_than_asked_for_are_no_verdict():
    """Bug: a look at two seeds that is called reproduced, and reversed by the third."""
    few = verdicts(_cells(n256=[0.5, 0.7], n64=[0.4, 0.6]), {"crowded": {"pose": {"mean": 0.5}}}, "A")[0]
    assert few.verdict == "unfinished" and few.effect["low"] == pytest.approx(0.1)
    assert str(few).endswith("2 seeds: unfinished")
    parts = {"n64_soft": [0.5, 0.5, 0.5], "n64_full_soft": [0.4, 0.4, 0.4]}
    cells = {name: {s: {"broad": {"part_iou": {"mean": p}}} for s, p in enumerate(ps)} for name, ps in parts.items()}
    asked_later = verdicts(cells, {"broad": {"part_iou": {"mean": 0.5}}}, ["B_soft"])[0]
    assert asked_later.verdict == "reproduced"


def test_cells_without_a_number_in_common():
    """Bug: a grid that is complete, and for ever called unfinished."""
    cells = {name: {s: {"test": {"f1": {"mean": 0.5}}} for s in range(5)} for name in ("tuned_mllm", "tuned_vit")}
    assert {one.verdict for one in verdicts(cells, {}, "E")} == {"not comparable"}
    del cells["tuned_vit"][4]
    assert {one.verdict for one in verdicts(cells, {}, "E")} == {"unfinished"}


def test_rules_name_cells_and_metrics_that_exist():
    """Bug: a misspelt metric, found only when the grid of many hours is done."""
    from seedx_lite.ablation import detokenizer, mllm
    from seedx_lite.evaluation.variants import SETS

    metrics = {name: {"pose", "position_error", "part_iou", "f1"} for name in SETS}
    metrics |= {"edits": {"outside_error", "success"}, "matched": {"coverage", "spread"}}
    rules, grids = read_rules(), (detokenizer.Cells, mllm.Cells)
    assert [*rules] == [claim for grid in grids for claim in grid.claims]
    asked = [(grid, claim, rule) for grid in grids for claim in grid.claims for rule in rules[claim]["parts"].values()]
    for grid, claim, rule in asked:
        least = 3 if "_" in claim else 5  # seeds of what is asked later, and of the primary contrasts
        names = {name for name, (_, seeds) in grid.usual.items() if seeds >= least}
        assert rule["want"] in ("more", "less", "no_less") and rule["margin"] > 0
        assert rule["metric"] in metrics[rule["set"]]
        sides = ["condition_on", "condition_off"]
        assert set(rule["contrast"]) <= names or (rule["set"] == "edits" and rule["contrast"] == sides)
