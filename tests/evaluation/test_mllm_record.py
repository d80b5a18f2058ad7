"""The record of the language model: judged by the truth, and beside baselines that are what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from seedx_lite.artifacts import read_manifest
from seedx_lite.data.drawn import scenes
from seedx_lite.evaluation import answers
from seedx_lite.evaluation import mllm as record_of
from seedx_lite.evaluation.drawing import judge_embeddings
from seedx_lite.evaluation.mllm import judge_captions, measure_detection, measure_questions
from seedx_lite.presets import load_preset
from seedx_lite.training.detokenizer import stage1
from seedx_lite.training.mllm import mllm
from seedx_lite.training.reader import reader
from seedx_lite.world.draw import render
from seedx_lite.world.language import canonical_caption, full_caption, references
from seedx_lite.world.questions import questions
from seedx_lite.world.scene import Scene, Thing

SCENES = scenes("test", 12, size=(32, 32))
SHOWN = [render(scene) for scene in SCENES]


def means(told):
    return {name: value["mean"] for name, value in told.items()}


def test_captions_are_judged_by_what_they_say():
    """Bugs: another wording that counts as wrong; a wrong colour, or a thing too many, that counts as right."""
    right = [full_caption(scene, seed) for seed, scene in enumerate(SCENES)]
    assert means(judge_captions(SCENES, right)) == dict.fromkeys(
        ("exact", "readable", "named", "sky", "ground", "things"), 1
    )
    scene = Scene((Thing("cat", "red", 0.2, 0.8, 0.3), Thing("ball", "blue", 0.8, 0.8, 0.2)))
    told = means(judge_captions([scene], [canonical_caption(scene).replace("blue", "green")]))
    assert told == {"exact": 0, "readable": 1, "named": 0, "sky": 1, "ground": 1, "things": pytest.approx(0.5)}
    told = means(judge_captions([scene], [canonical_caption(scene).replace("on the right", "in the middle")]))
    assert told["exact"] == 0 and told["named"] == 1
    told = means(judge_captions([scene], [canonical_caption(replace(scene, things=scene.things[:1]))]))
    assert told["exact"] == 0 and told["things"] == pytest.approx(2 / 3)
    assert means(judge_captions([scene], ["on on on"])) == dict.fromkeys(told, 0)


class Oracle:
    """Answers that are right, or wrong where it is told to be blind."""

    def __init__(self):
        self.truth = {
            (id(picture), question.text): question.answer
            for scene, picture in zip(SCENES, SHOWN, strict=True)
            for question in questions(scene)
        }

    def ask(self, pictures, texts, blind=False):
        told = [self.truth.get((id(p), text), "no idea") for p, text in zip(pictures, texts, strict=True)]
        return ["no"] * len(texts) if blind else told

    def boxes(self, pictures, phrases):
        found = []
        for picture, phrase in zip(pictures, phrases, strict=True):
            scene = SCENES[[one is picture for one in SHOWN].index(True)]
            (thing,) = [thing for thing in scene.things if phrase in references(scene, thing)]
            found.append((tuple(min(1, max(0, side)) for side in scene.box(thing)),))
        return [None if place % 4 == 0 else boxes for place, boxes in enumerate(found)]


def test_questions_by_topic():
    """Bugs: a question about another picture; baselines that see the truth."""
    told = measure_questions(Oracle(), SCENES, SHOWN)
    assert all(values["model"]["mean"] == 1 for values in told.values()) and {"all", "colour", "sky"} <= told.keys()
    assert told["sky"]["blind"]["mean"] == told["colour"]["blind"]["mean"] == 0 < told["presence"]["blind"]["mean"] < 1
    assert 0 < told["all"]["other"]["mean"] < 0.7, "a question that is about another scene is right by chance"
    assert 0 < told["all"]["frequent"]["mean"] < 0.7 and told["sky"]["frequent"]["mean"] < 0.8


def test_detections():
    """Bugs: the box of another thing; answers that are no box left out of the mean."""
    told = means(measure_detection(Oracle(), SCENES, SHOWN))
    assert told["malformed"] == pytest.approx(0.25, abs=0.05) and told["p50"] == pytest.approx(1 - told["malformed"])
    assert 0.9 * told["p50"] < told["iou"] < told["p50"]


def test_embeddings_in_closed_form():
    """Bugs: a variance over channels in place of scenes; a mean of ratios."""
    torch.manual_seed(0)
    real = torch.randn(400, 4, 8)
    same, half = judge_embeddings(real, real), judge_embeddings(real / 2, real)
    assert means(same) == {"mse": 0, "cosine": pytest.approx(1), "unexplained": 0, "variance": pytest.approx(1)}
    assert means(half)["variance"] == pytest.approx(0.25) and means(half)["unexplained"] == pytest.approx(
        0.25, rel=0.01
    )
    constant = means(judge_embeddings(real.mean(0).expand_as(real), real))
    assert constant["unexplained"] == pytest.approx(1, rel=1e-4) and constant["variance"] == pytest.approx(0, abs=1e-6)


def test_record(tmp_path, monkeypatch):
    """Bugs: a ceiling that is not of this de-tokenizer; numbers that a notebook cannot compute again."""
    preset = load_preset("smoke")
    folders = {"mllm": mllm(preset, runs=tmp_path), "adapter": stage1(preset, runs=tmp_path)}
    folders |= {name: tmp_path / "smoke" / f"{name}-seed0" for name in ("vit", "sdxl")}
    judge = reader(preset, runs=tmp_path)
    monkeypatch.setattr(answers, "FREQUENT", 20)
    record = json.loads(record_of.evaluate(preset, folders, judge, count=6, runs=tmp_path).read_text())
    assert record["artifacts"]["mllm"] == read_manifest(folders["mllm"])["id"] and len(record["artifacts"]) == 5
    for split in ("test", "composition"):
        told = record["drawing"][split]
        assert told.keys() == {"ours", "ceiling"} and "position_error" not in told["ours"]
        assert {"f1", "coverage"} <= told["ceiling"].keys() and {"mse", "f1"} <= told["ours"].keys()
    assert record["drawing"]["prompts"]["ours"]["spread"]["mean"] >= 0
    seedx = record_of.SeedX.from_artifacts(**folders)
    wanted = scenes("test", 6, size=preset.size)
    again = record_of._first(seedx, wanted, [render(scene) for scene in wanted])
    assert again["captions"] == record["first"]["captions"]
    assert np.allclose(again["mse"], record["first"]["mse"], atol=record["tolerance"])
