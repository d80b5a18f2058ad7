"""The grid of language models at the size of a test: what its cells measure, and what is made of them."""

import json

import numpy as np
import pytest
import torch

from seedx_lite.ablation import mllm as ablation
from seedx_lite.artifacts import read_manifest
from seedx_lite.evaluation.drawing import ALIKE, AVERAGED, EACH, GUIDANCES, alike
from seedx_lite.models.mllm import ContinuousLVLM
from seedx_lite.models.resamplers import FlowResampler
from seedx_lite.training.mllm import MLLMVariant
from seedx_lite.training.tuning import Imagined, Tuning
from seedx_lite.world.scene import is_clear, sample_scene

COUNTS = {"test": 6, "composition": 6, "prompts": 2, "alike": 2}
SMALL = {
    "q64": (MLLMVariant(standardise=True), 2),
    "q256": (MLLMVariant(n=256, standardise=True), 1),
    "deep_flow": (MLLMVariant(connector="deep_flow", standardise=True), 1),
    "tuned_vit": (Tuning(), 1),
    "tuned_mllm": (Tuning(features="mllm"), 1),
}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return ablation.Cells("smoke", runs=tmp_path_factory.mktemp("runs"), variants=SMALL, counts=COUNTS)


@pytest.fixture(scope="module")
def measured(grid):
    return {cell: grid.cell(*cell) for cell in grid.cells}


def test_cells_tell_of_pictures_and_embeddings(measured):
    """Bugs: a seed that changes nothing; weights of half the steps that are those of all."""
    first, second = measured["q64", 0], measured["q64", 1]
    assert set(first["sets"]) == {"test", "composition", "prompts"}
    assert {"f1", "coloured_f1", "coverage", "vendi", "mse", "variance"} <= first["sets"]["test"].keys()
    assert first["sets"]["test"]["mse"] != second["sets"]["test"]["mse"] != first["half"]["test"]["mse"]
    assert 1 <= first["sets"]["prompts"]["spread"]["mean"] <= EACH


def test_all_drawing_learns_from_captions_alone(grid, measured):
    """Bugs: cells that also read, so that less is seen of what is compared; N of another cell."""
    for name, n in (("q64", 64), ("q256", 256)):
        folder = grid.runs / "smoke" / f"cell-mllm-{name}-seed0"
        assert "forms" not in read_manifest(folder)["config"]
        assert len(ContinuousLVLM.from_pretrained(folder).config.image_token_ids) == n


def test_tunings_go_on_from_the_main_models(grid, measured):
    """Bugs: a tuning of another language model, or on embeddings that are not what it predicts."""
    upstream = read_manifest(grid.runs / "smoke" / "cell-mllm-tuned_mllm-seed0")["upstream"]
    assert upstream["mllm"] == read_manifest(grid.runs / "smoke" / "mllm-seed0")["id"]
    cell = measured["tuned_mllm", 0]
    assert [row["guidance"] for row in cell["curve"]] == list(GUIDANCES) and "f1" in cell["real"]
    parts = ablation.detokenizer.load_parts(grid.folders["vit"], grid.folders["sdxl"])
    told = {f: Imagined(grid.preset, parts, f, grid._assistant(), grid.runs) for f in ("vit", "mllm", "noisy")}
    batches = {f: samples.batch(16, torch.Generator().manual_seed(0)) for f, samples in told.items()}
    assert all(torch.equal(batch["latents"], batches["vit"]["latents"]) for batch in batches.values())
    gaps = {f: (batch["image_embeds"] - batches["vit"]["image_embeds"]).abs().mean() for f, batch in batches.items()}
    assert gaps["vit"] == 0 < gaps["noisy"] and gaps["mllm"] > 0
    assert len(told["vit"].embeddings) == 16, "scenes that the language model was not trained on"
    with pytest.raises(ValueError, match="expected one of vit, mllm, noisy"):
        Tuning(features="text")


def test_the_record_of_the_grid(grid, measured):
    record = json.loads(grid.gather().read_text())
    assert record["missing"] == [] and record["cells"]["q64"]["1"] == measured["q64", 1]
    assert [(v["claim"], v["verdict"]) for v in record["verdicts"]] == [
        (claim, "unfinished") for claim in ("C", "D", "E", "E")
    ]
    assert [(row["n"], row["averaged"]) for row in record["averaged"]] == [(n, c) for n in (64, 256) for c in AVERAGED]
    assert {"test", "test_n64", "test_n256", "prompts", "matched"} <= record["ceilings"].keys()
    contrasts = grid.by_contrast(record)
    assert 0 <= contrasts["tuned_mllm"][0]["matched"]["coverage"]["mean"] <= 1 and "matched" not in contrasts["q64"][0]


def test_coverage_is_compared_at_the_same_f1():
    """Bug: a de-tokenizer that draws better is said to cover more."""

    def rows(*pairs):
        return [{"f1": {"mean": f1}, "coverage": {"mean": covered}} for f1, covered in pairs]

    told = ablation.matched({"a": rows((0.4, 0.8), (0.6, 0.6), (0.5, 0.1)), "b": rows((0.3, 0.9), (0.5, 0.5))})
    assert told == pytest.approx({"a": 0.7, "b": 0.5})


def test_scenes_alike_differ_in_what_captions_leave_open():
    rng = np.random.default_rng(0)
    for index in range(8):
        scene = sample_scene(index)
        others = [alike(scene, rng) for _ in range(3)]
        assert all(one.content == scene.content and is_clear(one) for one in others)
        assert len({one.things[0].x for one in others}) > 1
    assert ALIKE <= 512


def test_flow_matching_draws_what_it_was_shown():
    """Bugs: time or noise turned round; a velocity on another scale; drawing that does not follow its training."""
    torch.manual_seed(0)
    head, states = FlowResampler(2, 16, 2, kv_dim=8), torch.randn(2, 4, 8)
    targets = torch.randn(2, 4, 16)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        head.errors(states.repeat(16, 1, 1), targets.repeat(16, 1, 1)).mean().backward()
        optimizer.step()
    drawn = [head.draw(states, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    for one in drawn:
        own, other = ((one - wanted).square().mean() for wanted in (targets, targets.flip(0)))
        assert own < other / 4
