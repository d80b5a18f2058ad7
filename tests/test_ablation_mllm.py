"""The grid of language models at the size of a test: what its cells measure, and what is made of them."""

import json

import numpy as np
import pytest
import torch

from seedx_lite.ablation import mllm as ablation
from seedx_lite.artifacts import SHIPPED, project_path, read_manifest
from seedx_lite.evaluation.drawing import ALIKE, AVERAGED, EACH, GUIDANCES, DrawingExaminer, alike, same_content
from seedx_lite.models.mllm import ContinuousLVLM
from seedx_lite.models.resamplers import FlowResampler
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.presets import load_preset
from seedx_lite.training.mllm import MLLMVariant
from seedx_lite.training.tuning import Imagined, Tuning
from seedx_lite.world.draw import render
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
    assert first["sets"]["test"]["mse"] != second["sets"]["test"]["mse"]
    assert first["sets"]["test"]["mse"] != first["half"]["test"]["mse"]
    assert 0 <= first["sets"]["prompts"]["spread"]["mean"] <= EACH - 1


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
    assert record["cells"]["tuned_mllm"]["0"]["learning_rate"] == record["cells"]["tuned_vit"]["0"]["learning_rate"]
    for name, value in (("tuned_mllm", 0.2), ("tuned_vit", 0.5)):
        record["cells"][name]["0"]["curve"] = rows((0.1, 1, 1), (0.9, value, value))
    contrasts = grid.by_contrast(record)
    assert contrasts["tuned_mllm"][0]["matched"]["spread"]["mean"] == pytest.approx(0.2)
    assert "matched" not in contrasts["q64"][0]


def rows(*points):
    """Of a curve over guidance: F1, coverage, spread."""
    return [
        dict(zip(("f1", "coverage", "spread"), ({"mean": value} for value in point), strict=True)) for point in points
    ]


def test_what_is_compared_at_the_same_f1():
    """Bugs: a de-tokenizer that draws better is said to cover more; one that is better throughout is compared with what
    it never draws."""
    ours, other = rows((0.4, 0.8, 2), (0.6, 0.6, 1), (0.5, 0.1, 0)), rows((0.3, 0.9, 3), (0.5, 0.5, 1))
    told = ablation.matched(ours, other)
    assert [{name: value["mean"] for name, value in side.items()} for side in told] == [
        pytest.approx({"coverage": 0.7, "spread": 1.5}),
        pytest.approx({"coverage": 0.5, "spread": 1.0}),
    ]
    assert ablation.matched(rows((0.6, 0.5, 1), (0.7, 0.4, 1)), other) is None


def test_copies_show():
    """Bug: measures of diversity that a quarter of copies moves less than the margin of the claim."""
    preset = load_preset("lite", ["data.test_scenes=128"])
    judge = SceneReader.from_pretrained(project_path(SHIPPED) / "lite" / "reader")
    examiner = DrawingExaminer(preset, {}, judge, {"composition": 2})
    rng = np.random.default_rng(0)
    drawn = [np.asarray(render(alike(scene, rng))) for scene in examiner.scenes["test"]]
    copied = [*drawn[:96], *drawn[:32]]
    full, fewer = (examiner.judge("test", pictures)["coverage"]["mean"] for pictures in (drawn, copied))
    assert full - fewer > 3 * 0.02 * full
    several = [drawn[k : k + 8] for k in range(0, 64, 8)]
    spreads = [
        examiner.spread(some)["mean"]
        for some in (several, [[*s[:6], *s[:2]] for s in several], [[s[0]] * 8 for s in several])
    ]
    assert spreads[0] - spreads[1] > 3 * 0.02 * spreads[0] and spreads[2] == pytest.approx(0, abs=1e-3)


def test_scenes_alike_differ_in_what_captions_leave_open():
    rng = np.random.default_rng(0)
    for index in range(8):
        scene = sample_scene(index)
        others = [alike(scene, rng) for _ in range(3)]
        assert all(one.content == scene.content and is_clear(one) for one in others)
        assert len({one.things[0].x for one in others}) > 1
        shown = same_content(scene, 4, seed=index)
        assert np.array_equal(shown[0], np.asarray(render(scene)))
        assert len({picture.tobytes() for picture in shown}) == 4
    assert ALIKE <= 512


def trained_flow(states, targets, steps=400):
    """A small head that has learned to draw a target for each of the states [P, 4, 8]."""
    torch.manual_seed(0)
    head = FlowResampler(grid_size=2, embed_dim=16, num_heads=2, kv_dim=8)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        head.errors(states.repeat(16, 1, 1), targets.repeat(16, 1, 1)).mean().backward()
        optimizer.step()
    return head


def test_flow_matching_draws_what_it_was_shown():
    """Bugs: hidden states that are left unread; draws that do not follow their generator."""
    states, targets = torch.randn(2, 2, 4, 16, generator=torch.Generator().manual_seed(0))
    head = trained_flow(states[..., :8], targets)
    drawn = [head.draw(states[..., :8], torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    for one in drawn:
        own, other = ((one - wanted).square().mean() for wanted in (targets, targets.flip(0)))
        assert own < other / 4


def test_flow_matching_draws_one_of_what_may_be_meant():
    """Bug: a head that tells the mean, as regression does, whatever the noise."""
    states, target = torch.zeros(2, 4, 8), torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    targets = torch.cat([target, -target])
    drawn = trained_flow(states, targets).draw(torch.zeros(64, 4, 8), torch.Generator().manual_seed(0))
    gaps = (drawn[:, None] - targets).square().mean((2, 3))  # [64, 2]
    assert gaps.min(1).values.median() < 0.25 * target.square().mean()  # the mean of both would be at 1
    assert 16 <= (gaps.argmin(1) == 0).sum() <= 48


def test_flow_matching_goes_from_noise_to_embeddings():
    """Bugs: time or noise turned round; steps of another length than the times between them; times that begin late.

    Embeddings of mean 3 and deviation 2 in place of a trained head: what they are on average, given a point of the way
    from noise to them, is known."""

    class Known(FlowResampler):
        def forward(self, read, noisy, time):
            share = time[:, None, None]
            return 3 + 4 * share / ((1 - share) ** 2 + 4 * share**2) * (noisy - 3 * share)

    head = Known(grid_size=2, embed_dim=16, num_heads=2, shift=1.0)
    drawn = head.draw(torch.zeros(256, 4, 16), torch.Generator().manual_seed(0), steps=200)
    assert drawn.mean() == pytest.approx(3, abs=0.05) and drawn.std() == pytest.approx(2, abs=0.05)
    late = FlowResampler(grid_size=2, embed_dim=16, num_heads=2).early(torch.tensor([0.0, 0.5, 1.0]))
    assert late.tolist() == pytest.approx([0, 1 / 9, 1])
