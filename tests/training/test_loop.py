"""The training loop, on a model that trains in milliseconds."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from seedx_lite.presets import TrainConfig
from seedx_lite.training import loop
from seedx_lite.training.loop import TrainingRecord, TrainingStopped, batch_share, ema_decay, learning_rate, train

CONFIG = TrainConfig(
    steps=40, batch_size=8, learning_rate=1e-2, warmup_steps=4, ema_decay=0.9, precision="fp32", spike_factor=0.0
)


def make_model():
    """Dropout draws from the global generator, layer 3 is frozen, the biases are 1-D parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.Linear(16, 1))
    model[3].requires_grad_(False)
    return model


def batch_at(step, share, generator):
    x = torch.randn(share, 6, generator=generator)
    return {"x": x, "y": x.sum(1, keepdim=True)}


def loss_of(model, batch, generator):
    noise = 0.1 * torch.randn(batch["y"].shape, generator=generator).to(batch["y"].device)
    loss = (model(batch["x"]) - batch["y"] - noise).square().mean()
    return loss, {"rmse": loss.sqrt()}


def weights(model):
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def start(tmp_path):
    """Starts Python on a text that may use everything in this file; ends what is left of it after the test."""
    here = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_loop import *\n"
    started = []

    def start(text, **environment):
        command = [sys.executable, "-c", here + textwrap.dedent(text)]
        options = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | environment}
        started.append(subprocess.Popen(command, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_kill_and_resume_give_the_weights_of_one_run(tmp_path, start):
    """A checkpoint that forgets a moment, the EMA, a random state or half of its file changes the result."""
    straight = make_model()
    whole = train(straight, batch_at, loss_of, CONFIG, tmp_path / "a", seed=3)
    text = f"""
        import time
        config = replace(CONFIG, checkpoint_seconds=0.0)
        def slow(step, values):
            if step == 17:
                print("seventeen", flush=True)
                time.sleep(60)
        train(make_model(), batch_at, loss_of, config, {str(tmp_path / "b")!r}, seed=3, on_step=slow)
    """
    process = start(text)
    assert any("seventeen" in line for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed, steps = make_model(), []
    record = train(resumed, batch_at, loss_of, CONFIG, tmp_path / "b", seed=3, on_step=lambda s, _: steps.append(s))
    assert steps == list(range(17, 41))  # step 17 was not in the checkpoint: killed before it was written
    assert same(weights(straight), weights(resumed))
    assert record.history == whole.history
    assert same(load_file(tmp_path / "a/checkpoint.safetensors"), load_file(tmp_path / "b/checkpoint.safetensors"))
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["checkpoint.safetensors"]


def test_a_finished_run_is_loaded(tmp_path):
    """A build that fails after its training would otherwise train again, or return weights without EMA."""
    first, second = make_model(), make_model()
    record = train(first, batch_at, loss_of, CONFIG, tmp_path)
    again = train(second, batch_at, loss_of, CONFIG, tmp_path, on_step=lambda *_: pytest.fail("trained again"))
    assert same(weights(first), weights(second)) and not second.training
    assert again.history == record.history and again.samples == record.samples == 40 * 8
    assert again.step_seconds == record.step_seconds > 0, "what a step cost is not forgotten"


def test_ema_is_the_weighted_sum_of_all_weights(tmp_path):
    """An average that lags one step, misses its warm-up or is not put into the model."""
    model, seen = make_model(), []
    start = model[0].weight.detach().clone()
    train(model, batch_at, loss_of, CONFIG, tmp_path, on_step=lambda *_: seen.append(model[0].weight.detach().clone()))
    decays = [ema_decay(t, 0.9) for t in range(40)]
    assert decays[0] == 0.1 and decays[-1] == pytest.approx(40 / 49)
    expected = start * math.prod(decays)
    for t, value in enumerate(seen):
        expected += value * (1 - decays[t]) * math.prod(decays[t + 1 :])
    torch.testing.assert_close(model[0].weight.detach(), expected)
    assert not torch.allclose(seen[-1], expected, atol=1e-4)


def test_visits_see_the_average_and_change_nothing(tmp_path):
    """Bug: a look at the training leaves the averaged weights, or eval mode, behind."""
    straight, looked, seen = make_model(), make_model(), []
    train(straight, batch_at, loss_of, CONFIG, tmp_path / "a")

    def look():
        seen.append((weights(looked), looked.training, torch.is_grad_enabled()))
        torch.randn(3)

    train(looked, batch_at, loss_of, CONFIG, tmp_path / "b", visits={20: look, 40: look})
    assert same(weights(straight), weights(looked)) and same(seen[1][0], weights(looked))
    assert [row[1:] for row in seen] == [(False, False)] * 2 and not same(seen[0][0], seen[1][0])


def test_frozen_parts_rest(tmp_path):
    """Frozen weights that decay, drop out or bloat the checkpoint; biases that decay."""
    model = make_model()
    frozen = model[3].weight.detach().clone()
    modes = []
    train(model, batch_at, loss_of, CONFIG, tmp_path, on_step=lambda *_: modes.append([m.training for m in model]))
    assert torch.equal(model[3].weight, frozen) and model[3].weight.grad is None
    assert modes[0] == [True, True, True, False, True]
    names = {n.split("/", 1)[1] for n in load_file(tmp_path / "checkpoint.safetensors") if n.startswith("weights/")}
    assert names == {"0.weight", "0.bias", "4.weight", "4.bias"}

    def still(m, batch, generator):
        return 0.0 * sum(p.sum() for p in m.parameters()), {}

    model, before = make_model(), make_model()
    config = replace(CONFIG, weight_decay=0.5, ema_decay=0.0)
    train(model, batch_at, still, config, tmp_path / "still")
    assert torch.equal(model[0].bias, before[0].bias)
    assert model[0].weight.norm() < before[0].weight.norm()


def test_learning_rate():
    """An off-by-one at the end of the warm-up, or a cosine that ends elsewhere than at its floor."""
    config = replace(CONFIG, steps=1000, warmup_steps=100, min_lr_ratio=0.1)
    assert learning_rate(0, config) == pytest.approx(1e-4)
    assert learning_rate(99, config) == learning_rate(100, config) == pytest.approx(1e-2)
    assert learning_rate(550, config) == pytest.approx(0.55e-2)
    assert learning_rate(999, config) == pytest.approx(1e-3, rel=1e-3)
    assert learning_rate(999, replace(config, schedule="constant")) == 1e-2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1000.0])
def test_bad_loss_stops_before_it_reaches_the_weights(tmp_path, bad):
    """A NaN or a spike in the loss that spoils the weights and the next checkpoint, hours before anyone looks."""

    def broken(model, batch, generator):
        loss, logs = loss_of(model, batch, generator)
        return loss * (bad if len(seen) == 30 else 1), logs

    model, seen = make_model(), []
    config = replace(CONFIG, spike_factor=10.0)
    with pytest.raises(TrainingStopped, match=r"step 30: .*learning_rate.*No checkpoint"):
        train(model, batch_at, broken, config, tmp_path, on_step=lambda *_: seen.append(weights(model)))
    assert same(weights(model), seen[-1]) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("key, value", [("learning_rate", 0.02), ("steps", 41), ("betas", (0.9, 0.99)), ("seed", 1)])
def test_resume_with_another_configuration_is_refused(tmp_path, key, value):
    """A run that is half of one configuration and half of another, under the name of the second."""
    train(make_model(), batch_at, loss_of, CONFIG, tmp_path)
    seed, config = (value, CONFIG) if key == "seed" else (0, replace(CONFIG, **{key: value}))
    with pytest.raises(ValueError, match=rf"checkpoint\.safetensors.*{key}: .*then.*now"):
        train(make_model(), batch_at, loss_of, config, tmp_path, seed=seed)


def test_resume_that_cannot_fit_is_refused(tmp_path):
    """A checkpoint of another model that is half loaded, and a damaged one."""
    train(make_model(), batch_at, loss_of, CONFIG, tmp_path)
    other = nn.Sequential(nn.Linear(6, 1))
    before = weights(other)
    with pytest.raises(ValueError, match=r"another model.*0\.bias"):
        train(other, batch_at, loss_of, CONFIG, tmp_path)
    assert same(weights(other), before)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged"):
        train(make_model(), batch_at, loss_of, CONFIG, tmp_path)
    with pytest.raises(ValueError, match="nothing to train"):
        train(nn.Linear(6, 1).requires_grad_(False), batch_at, loss_of, CONFIG, tmp_path)


@pytest.fixture
def forgetful_accelerate():
    """Accelerate without what earlier tests, or this one, told it of the machine's precision."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_bf16_and_fp32_in_one_process(tmp_path, monkeypatch, forgetful_accelerate):
    """Accelerate fixes its precision per process: the second of two runs would get that of the first."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    dtypes = []

    def spy(model, batch, generator):
        dtypes.append(model(batch["x"]).dtype)
        return loss_of(model, batch, generator)

    for precision in ("bf16", "fp32", "bf16"):
        config = replace(CONFIG, steps=1, precision=precision)
        record = train(make_model(), batch_at, spy, config, tmp_path / str(len(dtypes)))
        assert record.dtype == precision and precision in record.dtype_reason
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_record(tmp_path):
    """A record that loses the cost of a run, or an average over all steps where one per entry was meant."""
    values = []
    record = train(make_model(), batch_at, loss_of, CONFIG, tmp_path, title="t", on_step=lambda _, v: values.append(v))
    record.save(tmp_path / "training.json")
    assert TrainingRecord(**json.loads((tmp_path / "training.json").read_text())) == record
    entry = json.loads((tmp_path / "training.json").read_text())["history"][-1]
    assert entry["step"] == 40 and entry["rmse"] == values[-1]["rmse"] and entry["lr"] == values[-1]["lr"]
    assert record.seconds > 0 and record.hardware["cores"] >= 1 and "torch" in record.versions
    long = train(make_model(), batch_at, loss_of, replace(CONFIG, steps=250), tmp_path / "long")
    assert [e["step"] for e in long.history[:2]] == [2, 4] and len(long.history) == 125


def test_two_processes_train_one_artifact(tmp_path, start):
    """Gradients that are not shared, ranks that see the same data, and a lock that the other process waits for."""
    text = f"""
        from accelerate import PartialState
        from safetensors.torch import save_file
        from seedx_lite.artifacts import ensure
        seen = []
        def noted(step, share, generator):
            batch = batch_at(step, share, generator)
            seen.append(batch["x"])
            return batch
        def build(folder):
            model = make_model()
            record = train(model, noted, loss_of, CONFIG, folder)
            record.save(folder / "training.json")
            state = model.state_dict() | {{"seen": torch.stack(seen)}}
            save_file(state, f"{tmp_path}/rank{{PartialState().process_index}}.safetensors")
        path = ensure("toy", build, preset="smoke", config={{}}, runs={str(tmp_path / "runs")!r})
        (path.parent / f"{{PartialState().process_index}}.txt").write_text(str(path))
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    team = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    team |= {"ACCELERATE_USE_CPU": "true"}
    pair = [start(text, RANK=rank, LOCAL_RANK=rank, **team) for rank in "01"]
    for process in pair:
        process.communicate(timeout=120)
    made = tmp_path / "runs/smoke/toy-seed0"
    assert [process.returncode for process in pair] == [0, 0]
    assert [(made.parent / f"{rank}.txt").read_text() for rank in (0, 1)] == [str(made)] * 2
    one, two = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    assert not torch.equal(one.pop("seen"), two.pop("seen")) and same(one, two)
    alone = make_model()
    train(alone, batch_at, loss_of, CONFIG, tmp_path / "alone")
    assert not same(one, weights(alone))
    record = TrainingRecord(**json.loads((made / "training.json").read_text()))
    assert record.samples == 40 * 8 and record.hardware["processes"] == 2


def test_a_batch_is_shared_out(monkeypatch):
    """Bugs: two processes that see twice as much as the configuration says; a batch that loses its rest."""
    assert batch_share(9) == 9
    monkeypatch.setattr(loop, "processes", lambda: SimpleNamespace(num_processes=2))
    assert batch_share(8) == 4
    with pytest.raises(ValueError, match="batch_size=9 on 2 processes: expected a multiple of 2"):
        batch_share(9)
