"""Records of the foundations, from nothing to the file, at the size of a test."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from seedx_lite.artifacts import check, read_manifest
from seedx_lite.bench import measure_sampling
from seedx_lite.data.drawn import scenes
from seedx_lite.data.pictures import from_sheet
from seedx_lite.evaluation import calibration, language_model, text_to_image
from seedx_lite.evaluation.records import load_record
from seedx_lite.pipelines.text_to_image import draw_captions, load_pipeline
from seedx_lite.presets import load_preset
from seedx_lite.training.detokenizer import stage1
from seedx_lite.training.foundations import pilot, sdxl
from seedx_lite.training.llama import llama
from seedx_lite.training.reader import reader, reader_2
from seedx_lite.training.vit import vit
from seedx_lite.world.language import canonical_caption
from seedx_lite.world.questions import TOPICS

SMOKE = load_preset("smoke")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder in which all of `smoke` is trained."""
    folder = tmp_path_factory.mktemp("runs")
    for stage in (vit, sdxl, llama, reader, reader_2, stage1):
        stage(SMOKE, runs=folder)
    return folder


@pytest.fixture(scope="module")
def folders(runs):
    return {name: runs / "smoke" / f"{name}-seed0" for name in ("sdxl", "reader", "reader_2")}


def test_calibration(runs, folders, monkeypatch):
    """Bugs: a set of pictures that is compared with the scenes of another; a ceiling by one rule only."""
    monkeypatch.setattr(calibration, "FIRST", 4)
    record = calibration.calibrate(SMOKE, folders, count=6)
    sets = {"renders", "plain_sky", "broad", "composition", "vae", "vae_composition"}
    for told in (record, record["by_place"]):
        assert set(told["reader"]) == set(told["reader_2"]) == sets
    assert set(record["disagreement"]) == sets and record["tolerance"] >= 0.002
    assert record["artifacts"] == {name: read_manifest(folder)["id"] for name, folder in folders.items()}


def test_text_to_image_record(runs, folders):
    """Bugs: a sheet that is not of the record's pictures; samples of two phases added wrongly."""
    path = text_to_image.evaluate(SMOKE, folders, count=4, runs=runs)
    record = json.loads(path.read_text())
    assert len(record["f1"]) == 4 and "position_error" not in record["test"]["reader"]
    with Image.open(path.with_suffix(".png")) as sheet:
        assert sheet.size == (4 * 32, 32)
        captions = [canonical_caption(scene) for scene in scenes("test", 4, size=SMOKE.size)]
        again = draw_captions(load_pipeline(folders["sdxl"]), captions)
        assert text_to_image.mean_difference(again, from_sheet(sheet, 32)) <= record["tolerance"]
    assert text_to_image.mean_difference(again, again[::-1]) > record["tolerance"]
    steps = [row["steps"] for row in record["progress"]]
    assert steps == [1, 3, 6, 7, 9, 12] and [row["samples"] for row in record["progress"]] == [4 * s for s in steps]


def test_pilots(runs, folders):
    """Bugs: two pilots of one prediction type; a pilot that changes the foundation that it starts from."""
    started = {"sdxl": folders["sdxl"], "vit": runs / "smoke" / "vit-seed0"}
    pilots = {kind: pilot(SMOKE, kind, started, runs=runs) for kind in ("epsilon", "v_prediction")}
    pipes = {kind: load_pipeline(folder) for kind, folder in pilots.items()}
    assert [pipe.scheduler.config.prediction_type for pipe in pipes.values()] == list(pipes)
    assert not torch.equal(*(pipe.unet.conv_out.weight for pipe in pipes.values()))
    for folder in started.values():
        check(folder)
    text_to_image.compare_pilots(SMOKE, {**pilots, "reader": folders["reader"]}, runs=runs)
    record = load_record(text_to_image.PILOTS, "smoke", runs=runs)
    assert {"f1", "background"} <= set(record["epsilon"]) == set(record["v_prediction"])
    difference = record["v_prediction"]["f1"]["mean"] - record["epsilon"]["f1"]["mean"]
    assert record["v_minus_epsilon"]["f1"]["mean"] == pytest.approx(difference, abs=1e-3)
    assert record["artifacts"].keys() == {"epsilon", "v_prediction", "reader"} and record["training_steps"] == 6


def test_noise_depends_on_place_and_seed_alone(folders):
    """Bugs: a picture that changes with its batch; one noise for all; bf16 that draws something else."""
    pipe, caption = load_pipeline(folders["sdxl"]), "a red cat on the left, on grass by day"
    three = draw_captions(pipe, [caption] * 3, steps=2)
    assert not np.array_equal(three[0], three[1])
    for option in ({"batch": 2}, {"quick": True}):
        again = np.stack(draw_captions(pipe, [caption] * 3, steps=2, **option)).astype(int)
        assert np.abs(again - np.stack(three)).mean() < (1 if "batch" in option else 4)
    assert not np.array_equal(draw_captions(pipe, [caption], seed=1, steps=2)[0], three[0])
    alone = draw_captions(pipe, [caption], steps=2, indices=[2])[0].astype(int)
    assert np.abs(alone - three[2]).mean() < 1 < np.abs(alone - three[0]).mean()
    with pytest.raises(ValueError, match="1 indices for 2 captions"):
        draw_captions(pipe, [caption] * 2, indices=[0])
    with pytest.raises(ValueError, match="a caption of 101 tokens, expected 80 at most: 'a red cat on"):
        draw_captions(pipe, [" ".join([caption] * 9)])


def test_language_model_record(runs):
    record = language_model.llama_report(runs / "smoke" / "llama-seed0", count=14, hits=1)
    assert [*map(int, record["after"])] == list(language_model.BEFORE) and min(record["after"].values()) > 1
    assert record["full"]["ratio"] > 1 and record["full"]["low"] < record["full"]["ratio"] < record["full"]["high"]
    assert set(record["answers"]) <= {"all", *TOPICS}
    assert record["answers"]["all"]["model"]["mean"] < record["answers"]["all"]["frequent"]["mean"]  # hardly trained
    assert 0.001 <= record["tolerance"] < 1


def test_sampling_is_timed_with_what_is_there(runs, tmp_path, capsys):
    """Bug: a benchmark that trains for hours what it wants to draw with."""
    assert measure_sampling("smoke", [], 0, str(tmp_path)) == {} and "vit, sdxl" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    timed = measure_sampling("smoke", [], 0, str(runs))
    assert len(timed) == 6 and min(timed.values()) > 0
