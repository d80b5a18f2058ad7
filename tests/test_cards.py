"""Model cards."""

import json

from seedx_lite.artifacts import check, ship
from seedx_lite.cards import ABOUT, RECORDS, write_card
from seedx_lite.cli import TRAININGS
from seedx_lite.doctor import STAGES
from seedx_lite.presets import load_preset
from seedx_lite.training.reader import reader


def test_every_shipped_stage_has_a_card():
    """Bug: a new stage is shipped, and nothing says what it is."""
    assert set(ABOUT) == set(RECORDS) == set(STAGES)
    assert {*TRAININGS["pretrain"], "detokenizer-stage1"} == set(STAGES)


def test_a_card_tells_what_was_measured(tmp_path):
    reader(load_preset("smoke"), runs=tmp_path / "runs")
    (folder,) = ship("smoke", ["reader"], runs=tmp_path / "runs", shipped=tmp_path / "shipped")
    told = {"renders": {"f1": {"mean": 0.875, "low": 0.8, "high": 0.9}}}
    (tmp_path / "reader.json").write_text(json.dumps({"reader": told}))
    card = write_card(folder, tmp_path).read_text()
    training = json.loads((folder / "training.json").read_text())
    assert card.startswith("# Scene reader") and "- reader, renders: f1 0.875" in card
    assert f"| {training['samples']:,} |" in card
    check(folder)  # a card is no part of the artifact
