"""The benchmark counts what it says it counts."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from seedx_lite.bench import TRAININGS, _train_once, bench, measure_drawing
from seedx_lite.presets import load_preset
from seedx_lite.training.loop import _count_flops


def test_flops_of_a_linear_map():
    """8 samples from 6 to 16: 2 · 8 · 6 · 16 forwards, as many for the weights' gradient, none for the input's."""
    model = nn.Linear(6, 16)

    def loss_of(model, batch, generator):
        return model(batch).square().sum(), {}

    assert _count_flops(model, loss_of, torch.randn(8, 6), torch.Generator()) == 2 * (2 * 8 * 6 * 16)
    assert model.weight.grad is None


def test_bench_of_one_training(tmp_path, capsys):
    result = bench("smoke", [], ["reader"], steps=4, out=tmp_path / "bench.json")
    measured = result["trainings"]["reader"]
    assert json.loads((tmp_path / "bench.json").read_text()) == result and "sampling" not in result
    assert 0 < measured["share_of_peak"] < 1 and measured["flops_per_step"] > 1e6
    assert measured["samples_per_second"] == pytest.approx(4 / measured["seconds_per_step"])
    assert 0 <= measured["data_seconds"] <= measured["seconds_per_step"] and 0.05 < measured["peak_memory_gb"] < 8
    assert sum(measured["profile"].values()) == pytest.approx(1, abs=0.01) and measured["profile"]["convolution"] > 0
    assert "reader" in capsys.readouterr().out


def test_one_pass_is_no_slower_than_token_by_token():
    """Bug: the two draw another number of embeddings, or the single pass is none."""
    times = measure_drawing("smoke", [])
    assert len(times) == 8
    for drawn in ("1 × 64", "8 × 64", "1 × 256", "8 × 256"):
        assert 0 < times[f"{drawn} embeddings in one pass"] < times[f"{drawn} embeddings token by token"]


def test_a_training_that_is_unknown_or_fails_is_told(capsys):
    """Bug: one stage that this machine cannot hold hides the numbers of all others."""
    with pytest.raises(ValueError, match="tokenizer unknown; expected some of vit, vae"):
        bench("smoke", [], ["tokenizer"])
    result = bench("smoke", ["llm.vocab_size=7"], ["llama"], steps=2)
    assert "llm.vocab_size=7" in result["trainings"]["llama"]["error"] and "ValueError" in capsys.readouterr().err
    assert len(set(TRAININGS)) == len(TRAININGS)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_at_the_size_of_a_gpu(name, tmp_path):
    """Bug: a preset that nobody has run, with sizes that do not fit each other."""
    parts = ("sdxl", "sdxl_words") if name == "unet" else (name,)
    small = [f"training.{part}.{key}" for part in parts for key in ("steps=1", "batch_size=2")]
    small += ["data.train_scenes=8", "data.reader_scenes=8", "data.validation_scenes=2", "name=bench"]
    record = _train_once(load_preset("gpu", small), name, tmp_path / "runs")
    assert record["samples"] == 2 and np.isfinite(record["history"][-1]["loss"])
