"""Instruction tuning of the pre-trained language model: SEED-X-I for dialogues, SEED-X-Edit for edits (paper §3.3 and
appendix B, official `src/train/train_seed_x_sft.py`).

Both start from the same pre-trained model. Its LoRA is merged into the weights, and new LoRA is trained, with all that
pre-training trains beside it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from seedx_lite.artifacts import ensure, read_manifest
from seedx_lite.data import instructions
from seedx_lite.data.corpora import DRAWN
from seedx_lite.data.instructions import EARLY
from seedx_lite.data.layout import Layout
from seedx_lite.data.prompts import INSTRUCTION
from seedx_lite.models.mllm import ContinuousLVLM
from seedx_lite.models.vit import VisionTransformerWithAttnPool
from seedx_lite.presets import Preset
from .mllm import CUT, Batches, Parts, files_recipe, mllm, new_layout, scenes_of, squares_of, train_mllm, with_files
from .vit import vit

CHAINS = 0.25  # share of edits that come in chains
BASES = {"mllm": "llama", "sft-chat": "mllm", "sft-edit": "mllm"}  # stages, and what their LoRA was trained upon
QUESTION = "{question}"  # of own conversations: the layout puts it into an instruction


def chat_parts(preset: Preset, layout: Layout, runs: str | Path, split: str = "train") -> Parts:
    """Dialogues about scenes, and own files of the preset's `mllm.chat_files`."""
    parts = scenes_of(instructions.Dialogues, preset, layout, runs, split)
    return with_files(parts, layout, preset.mllm.chat_files, QUESTION)


def edit_parts(preset: Preset, layout: Layout, runs: str | Path, split: str = "train") -> Parts:
    """Edits of scenes, alone and in chains, and own files of the preset's `mllm.edit_files`. Chains have more pictures
    than edits, so there are fewer."""
    about = preset, layout, runs, split
    edits, chains = squares_of(instructions.Edits, *about, each=2), squares_of(instructions.Chains, *about, each=6)
    parts = {"edits": edits, "chains": chains}, {"edits": 1 - CHAINS, "chains": CHAINS}
    return with_files(parts, layout, preset.mllm.edit_files, QUESTION)


PARTS: dict[str, tuple[Callable[..., Parts], dict[str, Any]]] = {  # what each is trained on, and what decides that
    "chat": (chat_parts, {"chat": instructions.CHAT, "drawn": DRAWN, "cut": CUT, "early": EARLY}),
    "edit": (edit_parts, {"absent": instructions.ABSENT_EDITS, "chains": CHAINS}),
}


def sft_chat(preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs") -> Path:
    """Tunes the pre-trained model on dialogues; returns the folder, which holds model and tokenizer. Raises ValueError
    for a preset without `training.sft_chat`."""
    return _tuned("chat", preset, seed, retrain, runs)


def sft_edit(preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs") -> Path:
    """Tunes the pre-trained model on edits; as `sft_chat`, with `training.sft_edit`."""
    return _tuned("edit", preset, seed, retrain, runs)


def _tuned(kind: str, preset: Preset, seed: int, retrain: bool, runs: str | Path) -> Path:
    if (config := getattr(preset.training, f"sft_{kind}")) is None:
        raise ValueError(f"preset {preset.name} has no `training.sft_{kind}`; give its entries")
    upstream, (parts, recipe) = [stage(preset, seed, runs=runs) for stage in (vit, mllm)], PARTS[kind]

    def build(folder: Path) -> None:
        layout = new_layout(preset, instruction=INSTRUCTION)
        tower = VisionTransformerWithAttnPool.from_pretrained(upstream[0])
        batches = Batches(parts(preset, layout, runs), layout, tower, read_manifest(upstream[0])["id"], runs, seed)
        model = ContinuousLVLM.from_pretrained(upstream[1], dtype=torch.float32).merge_lora()
        torch.manual_seed(seed)
        model.add_lora(**preset.lora_kwargs)
        train_mllm(model, batches, config, seed, folder, title=f"instruction tuning, {kind}")
        model.to("cpu").save_pretrained(folder)
        layout.tokenizer.save_pretrained(folder)

    recipe = recipe | {"requests": instructions.REQUESTS, "files": files_recipe(getattr(preset.mllm, f"{kind}_files"))}
    recipe |= {"training": config.recipe, "mllm": preset.mllm.recipe, "scenes": preset.data.train_scenes}
    about = {"preset": preset.name, "seed": seed, "config": recipe, "upstream": upstream}
    return ensure(f"sft-{kind}", build, **about, retrain=retrain, runs=runs)
