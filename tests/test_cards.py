"""Model cards."""

import json

from seedx_lite.artifacts import SHIPPED, check, project_path, read_manifest, ship
from seedx_lite.cards import ABOUT, RECORDS, write_card
from seedx_lite.cli import TRAININGS
from seedx_lite.doctor import STAGES
from seedx_lite.evaluation.records import save_record, training_minutes
from seedx_lite.presets import load_preset
from seedx_lite.training.reader import reader


def test_every_shipped_stage_has_a_card():
    """Bug: a new stage is shipped, and nothing says what it is."""
    assert set(STAGES) <= set(ABOUT) == set(RECORDS)
    shipped = {path.parent.name for path in (project_path(SHIPPED) / "lite").glob("*/artifact.json")}
    assert {*TRAININGS["pretrain"]} < shipped == set(STAGES)


def test_a_card_tells_what_was_measured(tmp_path):
    reader(load_preset("smoke"), runs=tmp_path / "runs")
    (folder,) = ship("smoke", ["reader"], runs=tmp_path / "runs", shipped=tmp_path / "shipped")
    told = {"reader": {"renders": {"f1": {"mean": 0.875, "low": 0.8, "high": 0.9}}}, "preset": "smoke", "seed": 0}
    told |= {"tolerance": 0.1, "artifacts": {"reader": "of others"}}
    save_record("reader", told, tmp_path / "runs")
    assert "0.875" not in write_card(folder, tmp_path / "runs").read_text()
    save_record("reader", told | {"artifacts": {"reader": read_manifest(folder)["id"]}}, tmp_path / "runs")
    card = write_card(folder, tmp_path / "runs").read_text()
    training = json.loads((folder / "training.json").read_text())
    assert card.startswith("# Scene reader") and "- reader, renders: f1 0.875" in card
    assert f"| {training['samples']:,} |" in card
    check(folder)  # a card is no part of the artifact


def test_minutes_are_those_of_the_steps():
    """Bug: a training that was paused overnight is said to have taken all night."""
    run = {"config": {"steps": 600}, "step_seconds": 0.5, "seconds": 9000.0}
    assert training_minutes(run) == 5 and training_minutes(run | {"step_seconds": 0.0}) == 150
