"""Pre-training of the language model: what is trained, on what, and by how many processes."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seedx_lite.artifacts import read_manifest
from seedx_lite.cli import main
from seedx_lite.data.collate import collate
from seedx_lite.models.mllm import ContinuousLVLM
from seedx_lite.models.resamplers import Resampler
from seedx_lite.models.vit import VisionTransformerWithAttnPool, embed_pictures, pool_embeddings
from seedx_lite.presets import load_preset
from seedx_lite.training import mllm as stage
from seedx_lite.training.mllm import Batches, MLLMVariant, balanced_loss, mllm, new_layout, new_model, pretraining
from seedx_lite.world.language import canonical_caption
from seedx_lite.world.scene import sample_scene

SMOKE = load_preset("smoke", ["data.train_scenes=24"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def batches(runs):
    torch.manual_seed(0)
    tower = VisionTransformerWithAttnPool(**vars(SMOKE.vit)).eval()
    layout = new_layout(SMOKE)
    return Batches(pretraining(SMOKE, layout, runs), layout, tower, "untrained", runs)


def test_the_stage_trains_what_it_should(runs):
    """Bugs: frozen matrices that move, and embeddings, norms or resamplers that do not."""
    folder = mllm(SMOKE, runs=runs)
    trained, layout = ContinuousLVLM.from_pretrained(folder), new_layout(SMOKE)
    start = new_model(SMOKE, layout, 0, runs / "smoke" / "llama-seed0")
    before, after = start.state_dict(), trained.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {name for name, p in start.named_parameters() if p.requires_grad}
    assert {"patch_pos_embed", "input_resampler.query", "output_resampler.query"} < moved
    told = json.loads((folder / "training.json").read_text())
    assert {"lm", "rec"} <= told["history"][0].keys() and read_manifest(folder)["upstream"].keys() == {"vit", "llama"}
    last = told["history"][-1]
    assert last["loss"] == pytest.approx(last["lm"] + 6 * last["rec"], rel=1e-5)
    with pytest.raises(ValueError, match=r"no `training\.mllm`"):
        mllm(load_preset("smoke", ["training.mllm=null"]), runs=runs)


def test_what_is_shipped_stands_on_what_it_was_trained_on(runs, tmp_path, monkeypatch, capsys):
    """Bug: LoRA of one language model beside the weights of another: it opens, and what it says is nonsense."""
    folder = mllm(SMOKE, runs=runs)
    (tmp_path / "data_samples").mkdir()
    monkeypatch.chdir(tmp_path)
    command = ["ship", "llama", "mllm", "--preset", "smoke", "--runs", str(runs)]
    assert main(command) == 0
    shipped = tmp_path / "data_samples" / "checkpoints" / "smoke"
    ours, copy = (ContinuousLVLM.from_pretrained(one).state_dict() for one in (folder, shipped / "mllm"))
    assert ours.keys() == copy.keys() and all(torch.allclose(ours[k], copy[k], atol=2e-3) for k in ours)
    about = json.loads((shipped / "llama" / "artifact.json").read_text())
    (shipped / "llama" / "artifact.json").write_text(json.dumps(about | {"id": "another"}))
    assert main([one for one in command if one != "llama"]) == 1
    assert "was built on another llama" in capsys.readouterr().err


def test_embeddings_are_those_of_the_pictures(batches):
    """Bug: rows of another corpus, or of another picture, so that captions and pictures do not belong together."""
    tower = VisionTransformerWithAttnPool(**vars(SMOKE.vit)).eval()
    tower.load_state_dict(batches_tower(batches))
    for step in range(4):
        batch = batches.at(step, 4)
        assert len(batch["image_embeds"]) == len(batch["embeds_cmp_mask"]) == len(batch["patch_positions"])
        made = batches._window(step // stage.WINDOW, 4)[step % stage.WINDOW]
        squares = [batches.mixture.corpora[name].squares[row] for name, _, rows in made for row in rows]
        assert torch.allclose(batch["image_embeds"], embed_pictures(tower, np.stack(squares)), atol=2e-3)
        wanted = collate([sample for _, sample, _ in made], batches.pad)
        assert torch.equal(batch["input_ids"], wanted["input_ids"])


def batches_tower(batches):
    torch.manual_seed(0)
    return VisionTransformerWithAttnPool(**vars(SMOKE.vit)).state_dict()


def test_every_sample_of_a_window_comes_once(batches):
    """Bug: sorting loses samples, or repeats them from step to step."""
    numbers = range(4 * stage.WINDOW, 8 * stage.WINDOW)
    expected = [batches.mixture.sample(number) for number in numbers]
    steps = batches._window(1, 4)
    assert sorted(str(one) for step in steps for one in step) == sorted(map(str, expected))
    assert sum(len({max(2, len(rows)) for *_, rows in step}) > 1 for step in steps) <= 2, (
        "each number of squares has steps of its own"
    )


def test_four_pictures_are_learned_by_heart():
    """Bugs: a gradient that does not reach the picture, so that all get one caption; what is drawn depends on the order
    in the batch, or is learned for positions that generation does not use."""
    preset = load_preset("smoke", ["mllm.lora_dropout=0"])
    layout, captions = new_layout(preset), [canonical_caption(sample_scene(index)) for index in range(4)]
    embeds = torch.randn(4, 256, 32, generator=torch.Generator().manual_seed(0))
    orders = [layout.caption(caption, (32, 32), image_first) for image_first in (True, False) for caption in captions]
    batch = collate(orders, layout.tokenizer.pad_token_id) | {"image_embeds": embeds.repeat(2, 1, 1)}
    model = new_model(preset, layout, 0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, betas=(0.9, 0.98))
    for _ in range(80):
        optimizer.zero_grad()
        balanced_loss(model, batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    names = ("input_ids", "attention_mask", "ids_cmp_mask", "patch_positions")
    shown = collate([layout.prompt("", [(32, 32)])] * 4, 0, left=True)
    said = model.generate(**{name: shown[name] for name in names}, image_embeds=embeds, max_new_tokens=40)
    told = [layout.tokenizer.decode(answer.text_ids[:-1]) for answer in said]
    assert told == captions
    asked = collate([layout.prompt(caption, draw=True) for caption in captions], 0, left=True)
    drawn = model.generate(asked["input_ids"], asked["attention_mask"], max_new_tokens=65)
    drawn, real = torch.stack([answer.pictures[0] for answer in drawn]), pool_embeddings(embeds, 64)
    assert torch.cdist(drawn.flatten(1), real.flatten(1)).argmin(1).tolist() == [0, 1, 2, 3]


def test_own_files_are_mixed_in(runs, tmp_path):
    """Bug: own samples are read and then left out of the mixture, or a change in them is not noticed."""
    from seedx_lite.data.samples import build

    own = build(tmp_path / "own", count=4)
    preset = load_preset("smoke", ["data.train_scenes=24", "training.mllm.steps=2", "name=own"])
    preset = stage.replace(preset, mllm=stage.replace(preset.mllm, files={str(own): 0.3}))
    folder = mllm(preset, runs=runs)
    assert read_manifest(folder)["config"]["files"].keys() == {str(own)}
    (own / "conversations" / "train.jsonl").open("a").write("\n")
    with pytest.raises(ValueError, match=r"another configuration \(files"):
        mllm(preset, runs=runs)


def test_variants_share_their_start(runs):
    """Bug: another connector draws other random numbers, so that variants of a seed differ in more than it."""
    main = new_model(SMOKE, new_layout(SMOKE), 3).state_dict()
    for variant in (MLLMVariant(n=256), MLLMVariant(connector="deep"), MLLMVariant(connector="wide")):
        model = new_model(SMOKE, new_layout(SMOKE, variant), 3, variant=variant)
        own = model.state_dict()
        for name, tensor in main.items():
            if not name.startswith("output_resampler."):
                assert torch.equal(own[name], tensor), name
        assert len(model.config.image_token_ids) == (variant.n or 64)
    assert not torch.equal(
        new_model(SMOKE, new_layout(SMOKE), 4).state_dict()["patch_pos_embed"], main["patch_pos_embed"]
    )


def test_connectors_are_of_one_size():
    """Bug: four layers win, or lose, by their parameters."""
    lite = load_preset("lite", ["llm.num_hidden_layers=1"])
    sizes = {}
    for connector in stage.CONNECTORS:
        variant = MLLMVariant(connector=connector)
        model = new_model(lite, new_layout(lite, variant), 0, variant=variant)
        sizes[connector] = sum(p.numel() for p in model.output_resampler.parameters())
        assert (type(model.output_resampler) is Resampler) == (connector == "one_layer")
    assert sizes["wide"] == pytest.approx(sizes["deep"], rel=0.05) and sizes["deep"] > 4 * sizes["one_layer"]
    with pytest.raises(ValueError, match="expected one of one_layer, deep, wide, flow"):
        MLLMVariant(connector="linear")


def test_standardised_targets(batches):
    """Bug: targets are scaled in the loss, and what is drawn is not scaled back."""
    scale = batches.scale(64)
    real = pool_embeddings(torch.from_numpy(np.array(batches.tables["narrow"])).float(), 64)
    layout = new_layout(SMOKE)
    model = new_model(SMOKE, layout, 0, **scale).eval()
    plain = new_model(SMOKE, layout, 0).eval()
    batch = next(b for b in map(lambda step: batches.at(step, 4), range(20)) if b["embeds_gen_mask"].any())
    out, target = model(**batch), pool_embeddings(batch["image_embeds"][batch["embeds_gen_mask"]], 64)
    mean, std = torch.tensor(scale["target_mean"]), torch.tensor(scale["target_std"])
    assert torch.allclose(((real - mean) / std).flatten(0, 1).std(0), torch.ones(32), atol=1e-3)
    wanted = (out.image_embeds - (target - mean) / std).square().mean()
    assert out.rec_loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    prompt = torch.tensor([[1, 9, model.config.boi_token_id]])
    one, other = (m.generate(prompt, max_new_tokens=65)[0].pictures[0] for m in (model, plain))
    assert torch.allclose(one, other * std + mean, atol=1e-5)


def test_two_processes_have_the_losses_of_one(tmp_path):
    """Bug: each process divides by its own number of labels, so that losses and weights depend on the split; or both
    see the same samples."""
    text = f"""
        import sys
        sys.path.insert(0, {str(os.path.dirname(__file__))!r})
        from test_mllm import *
        from dataclasses import replace
        preset = load_preset("smoke", ["data.train_scenes=24", "mllm.lora_dropout=0"])
        torch.manual_seed(0)
        tower = VisionTransformerWithAttnPool(**vars(preset.vit)).eval()
        world = int(os.environ.get("WORLD_SIZE", "1"))
        config = replace(preset.training.mllm, steps=8, batch_size=8, precision="fp32")
        layout = new_layout(preset)
        runs = f"{tmp_path}/" + os.environ.get("RANK", "alone")
        folder = stage.Path(runs, "made")
        folder.mkdir(parents=True)
        shared = folder if world == 1 else stage.Path({str(tmp_path)!r}, "shared")
        shared.mkdir(exist_ok=True)
        batches = Batches(pretraining(preset, layout, runs), layout, tower, "x", runs)
        stage.train_mllm(new_model(preset, layout, 0), batches, config, 0, shared)
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    team = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    team |= {"ACCELERATE_USE_CPU": "true", "SEEDX_LITE_RUNS": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(text)]
    started = [subprocess.Popen(command, env=os.environ | team | {"RANK": r, "LOCAL_RANK": r}) for r in "01"]
    started.append(subprocess.Popen(command))
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    alone, together = (
        json.loads((tmp_path / folder / "training.json").read_text()) for folder in ("alone/made", "shared")
    )
    assert together["samples"] == alone["samples"] == 64
    for one, two in zip(alone["history"], together["history"], strict=True):
        for name in ("loss", "lm", "rec", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), (one["step"], name)
    weights = [load_file(tmp_path / folder / "checkpoint.safetensors") for folder in ("alone/made", "shared")]
    names = [name for name in weights[0] if name.startswith("weights/")]
    assert names and all(torch.allclose(weights[0][n], weights[1][n], atol=2e-3) for n in names)
