"""The record of a de-tokenizer, from an untrained one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from seedx_lite import artifacts, cli
from seedx_lite.evaluation import detokenizer as module
from seedx_lite.evaluation import records
from seedx_lite.evaluation.detokenizer import RECORD, estimated_latents, evaluate
from seedx_lite.evaluation.records import load_record
from seedx_lite.models.detokenizer import SDXLAdapter
from seedx_lite.presets import load_preset
from seedx_lite.training.reader import reader


@pytest.fixture(scope="module")
def folders(detokenizer_parts, tmp_path_factory):
    """The parts, saved as the stages save them."""
    root, parts = tmp_path_factory.mktemp("stages"), detokenizer_parts
    parts["vit"].save_pretrained(root / "vit")
    SDXLAdapter(parts["unet"], parts["resampler"], vit_down=4).save_pretrained(root / "adapter")
    for name in ("vae", "unet", "scheduler"):
        parts[name].save_pretrained(root / "sdxl" / name)
    for name in ("vit", "sdxl", "adapter"):
        (root / name / "artifact.json").write_text(json.dumps({"stage": name, "id": name, "upstream": {}, "files": {}}))
    return {name: root / name for name in ("vit", "sdxl", "adapter")}


def test_record(folders, tmp_path, monkeypatch, capsys):
    """Bugs: differences with the wrong sign or unpaired; a ceiling that is not one; a record that cannot be read."""
    monkeypatch.setattr(module, "STEPS", 2)
    preset = load_preset("smoke", ["data.validation_scenes=2", "data.test_scenes=4", "data.train_scenes=6"])
    path = evaluate(preset, folders, {"reader": reader(preset, runs=tmp_path)}, runs=tmp_path)
    record = load_record(RECORD, "smoke", runs=tmp_path)
    assert path.is_relative_to(tmp_path) and record == json.loads(path.read_text())
    assert record["read"]["reader"].keys() == {"ours", "vae"} and "f1" in record["read"]["reader"]["vae"]
    numbers = record["numbers"]
    assert path.read_text().count("\n") < 200, "the numbers of all scenes in one line"
    assert {len(values) for row in numbers.values() for values in row.values()} == {4}
    assert numbers["original"]["colour_error"] == [0.0] * 4 and min(numbers["original"]["thing_iou"]) > 0.8
    difference = np.subtract(numbers["ours"]["thing_iou"], numbers["mean"]["thing_iou"])
    row = record["differences"]["mean"]["thing_iou"]
    assert row["mean"] == pytest.approx(difference.mean(), abs=1e-4) and row["low"] < row["mean"] < row["high"]
    assert record["tolerance"]["repeats"]["threads 1"]["thing_iou"] < 0.01, "the same weights, the same numbers"
    assert {(row["steps"], row["guidance"]) for row in record["sweep"]} >= {(2, 1.0), (50, 2.0)}
    assert [row["time"] for row in record["noise_levels"]] == [100, 300, 500, 700, 900]
    assert Image.open(path.with_suffix(".png")).size == (32, 32)
    assert "4 held-out scenes" in capsys.readouterr().out
    path.write_text("{")
    with pytest.raises(ValueError, match=r"detokenizer_stage1-seed0\.json is damaged"):
        load_record(RECORD, "smoke", runs=tmp_path)
    assert load_record(RECORD, "smoke", 1, tmp_path) is None


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_estimated_latents(detokenizer_parts, kind):
    """Bug: one prediction type is read as the other."""
    scheduler = type(detokenizer_parts["scheduler"])(prediction_type=kind)
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([400])
    noisy = scheduler.add_noise(latents, noise, time)
    predicted = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, time)
    assert torch.allclose(estimated_latents(scheduler, predicted, noisy, 400), latents, atol=1e-5)


def test_only_records_of_lite_are_shipped(tmp_path, monkeypatch):
    """Bug: `ship` at another preset puts its numbers in the place of the committed ones."""
    monkeypatch.setattr(records, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    for preset, seed in (("lite", 0), ("lite", 1), ("smoke", 0)):
        records.save_record("mine", {"preset": preset, "seed": seed, "tolerance": 0.1}, tmp_path)
    assert records.ship_records(tmp_path) == [tmp_path / "shipped" / "mine.json"]
    assert json.loads((tmp_path / "shipped" / "mine.json").read_text())["preset"] == "lite"
    monkeypatch.setattr(artifacts, "ship", lambda *_, **__: [])
    monkeypatch.setattr(records, "ship_records", lambda _: pytest.fail("records of smoke shipped"))
    assert cli.main(["ship", "--preset", "smoke"]) == 0
