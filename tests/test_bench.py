"""The benchmark counts what it says it counts."""

import json

import pytest
import torch
from torch import nn

from seedx_lite.bench import TRAININGS, bench
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


def test_a_training_that_is_unknown_or_fails_is_told(capsys):
    """Bug: one stage that this machine cannot hold hides the numbers of all others."""
    with pytest.raises(ValueError, match="tokenizer unknown; expected some of vit, vae"):
        bench("smoke", [], ["tokenizer"])
    result = bench("smoke", ["llm.vocab_size=7"], ["llama"], steps=2)
    assert "llm.vocab_size=7" in result["trainings"]["llama"]["error"] and "ValueError" in capsys.readouterr().err
    assert len(set(TRAININGS)) == len(TRAININGS)
