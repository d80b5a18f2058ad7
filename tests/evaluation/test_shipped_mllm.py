"""What is committed of the language model: numbers that belong to its weights, and reach the floors."""

import numpy as np
import pytest
import torch

from seedx_lite.artifacts import SHIPPED, project_path, read_manifest
from seedx_lite.data.drawn import scenes
from seedx_lite.evaluation import mllm as record_of
from seedx_lite.evaluation.records import load_record
from seedx_lite.pipelines.assistant import SeedX
from seedx_lite.world.draw import render

LITE = project_path(SHIPPED) / "lite"
STAGES = {"vit": "vit", "sdxl": "sdxl", "mllm": "mllm", "adapter": "detokenizer-stage1"}
FOLDERS = {part: LITE / stage for part, stage in STAGES.items()}


@pytest.fixture(scope="module")
def record():
    return load_record(record_of.RECORD, "lite", runs="nowhere")


def test_the_record_is_of_the_committed_weights(record):
    """Bug: a model trained again, and the numbers of the old one beside it."""
    made = FOLDERS | {"reader": LITE / "reader"}
    assert record["artifacts"] == {part: read_manifest(folder)["id"] for part, folder in made.items()}


def test_reading_reaches_its_floors(record):
    """Bug: weights committed that read less than the book says."""
    sides = {side: told["mean"] for side, told in record["questions"]["all"].items()}
    assert record["captions"]["named"]["mean"] >= 0.75 and record["captions"]["readable"]["mean"] >= 0.99
    assert sides["model"] >= 0.79 and sides["model"] - max(sides["blind"], sides["other"], sides["frequent"]) >= 0.25
    told = {metric: one["mean"] for metric, one in record["detection"].items()}
    assert told["iou"] >= 0.40 and told["p50"] >= 0.45 and told["malformed"] < 0.01


def test_drawing_reaches_its_floor(record):
    """Bug: a language model that draws worse than the text-to-image model by more than the floor allows."""
    ours, other = record["drawing"]["test"]["ours"], load_record("text_to_image", "lite")["test"]["reader"]
    for metric in ("f1", "colour"):
        assert ours[metric]["mean"] >= 0.80 * other[metric]["mean"], metric


def test_the_record_can_be_computed_again(record):
    """Bug: a check that other weights pass."""
    seedx, wanted = SeedX.from_artifacts(**FOLDERS), scenes("test", record_of.FIRST)

    def agrees():
        told = record_of._first(seedx, wanted, [render(scene) for scene in wanted])
        same = np.mean([a == b for a, b in zip(told["captions"], record["first"]["captions"], strict=True)])
        return same >= 0.9 and np.allclose(told["mse"], record["first"]["mse"], atol=record["tolerance"])

    assert agrees()
    values = seedx.model.llm.get_decoder().layers[2].mlp.down_proj.base_layer.weight
    with torch.no_grad():
        values += 0.3 * values.std() * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    assert not agrees(), "one matrix with a little noise must fail the check"
