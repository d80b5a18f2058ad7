"""Instruction tuning: it starts from the pre-trained model, learns what it is shown, and takes in own files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from seedx_lite.artifacts import read_manifest
from seedx_lite.data import conversations, edits
from seedx_lite.data.conversations import Conversation
from seedx_lite.data.corpora import Files
from seedx_lite.data.edits import EditPair
from seedx_lite.data.prompts import INSTRUCTION
from seedx_lite.models.mllm import ContinuousLVLM
from seedx_lite.models.vit import VisionTransformerWithAttnPool
from seedx_lite.presets import load_preset
from seedx_lite.training import sft
from seedx_lite.training.mllm import Batches, balanced_loss, mllm, new_layout, new_model

SMOKE = load_preset("smoke", ["data.train_scenes=24", "data.second_scenes=24"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return VisionTransformerWithAttnPool(**vars(SMOKE.vit)).eval()


@pytest.mark.parametrize("kind", ["chat", "edit"])
def test_a_tuning_starts_from_the_pre_trained_model(kind, runs):
    """Bugs: LoRA of pre-training is thrown away, or tuned further in place of being merged; another start."""
    still = load_preset(
        "smoke", ["data.train_scenes=24", "data.second_scenes=24", f"training.sft_{kind}.learning_rate=1e-12"]
    )
    folder = getattr(sft, f"sft_{kind}")(still, runs=runs)
    started, tuned = (ContinuousLVLM.from_pretrained(one) for one in (mllm(SMOKE, runs=runs), folder))
    assert tuned.config.lora == started.config.lora is not None
    before, after = started.merge_lora().state_dict(), tuned.merge_lora().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-3, rtol=1e-2) for name in before)
    assert read_manifest(folder)["upstream"]["mllm"] == read_manifest(mllm(SMOKE, runs=runs))["id"]


@pytest.mark.parametrize("kind", ["chat", "edit"])
def test_a_tuning_learns(kind, runs, tower):
    """Bug: a batch in which nothing of the answers is trained, or whose pictures are those of others."""
    layout = new_layout(SMOKE, instruction=INSTRUCTION)
    batches = Batches(sft.PARTS[kind][0](SMOKE, layout, runs), layout, tower, "untrained", runs)
    model = new_model(load_preset("smoke", ["mllm.lora_dropout=0"]), layout, 0).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(60):
        loss, parts = balanced_loss(model, batches.at(step % 4, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(parts["lm"]))
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])


def test_own_files_are_asked_as_instructions(tmp_path, runs):
    """Bugs: own conversations in the form of pre-training, two forms around one question; files that do not come up."""
    for name, colour in (("before.jpg", "red"), ("after.jpg", "blue")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / name)
    pair = EditPair(tmp_path / "before.jpg", tmp_path / "after.jpg", "make it night")
    edits.write(tmp_path / "edits.jsonl", [pair], tmp_path)
    preset = replace(SMOKE, mllm=replace(SMOKE.mllm, edit_files={str(tmp_path): 0.5}))
    layout = new_layout(preset, instruction=INSTRUCTION)
    corpora, weights = sft.edit_parts(preset, layout, runs)
    assert weights == {"edits": 0.375, "chains": 0.125, str(tmp_path): 0.5} and isinstance(
        corpora[str(tmp_path)], Files
    )
    sample, _ = corpora[str(tmp_path)].sample(0, np.random.default_rng(0))
    told = " ".join(layout.tokenizer.convert_ids_to_tokens(sample.input_ids))
    assert told.count("[ inst ]") == 1 and "question" not in told
    talk = Conversation(tmp_path / "before.jpg", ("what is there?", "a red cat"))
    conversations.write(tmp_path / "talk/talk.jsonl", [talk], tmp_path)
    corpus = Files(layout, tmp_path / "talk", sft.QUESTION, images=tmp_path)
    told = " ".join(layout.tokenizer.convert_ids_to_tokens(corpus.sample(0, np.random.default_rng(0))[0].input_ids))
    assert told.count("[ inst ]") == 1 and "question" not in told and "what is there ?" in told


def test_a_preset_without_the_tuning():
    with pytest.raises(ValueError, match=r"has no `training\.sft_edit`; give its entries"):
        sft.sft_edit(replace(SMOKE, training=replace(SMOKE.training, sft_edit=None)))
    with pytest.raises(ValueError, match=r"mllm.chat_files=.*sum to less than 0.9"):
        load_preset("smoke", [f"mllm.chat_files={json.dumps({'a': 0.95})}"])
