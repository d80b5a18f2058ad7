"""Pre-training of the language model on the world's language (in the paper: LLaMA2-chat-13B, downloaded).

It learns what can be said of scenes, how questions are answered from a description, and what an edit changes: all in
words, no picture. Few of these tokens belong to answers. Where a preset has `training.llama_answers`, a second phase
asks many questions about each text, and counts the loss of the answers apart. SEED-X then teaches it to see.
"""

from dataclasses import asdict
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from seedx_lite.artifacts import ensure
from seedx_lite.data.corpora import pick
from seedx_lite.data.documents import (
    LESSON_QUESTIONS,
    LESSONS,
    MOST_QUESTIONS,
    SHARES,
    document,
    encode_lessons,
    lesson,
    pack_documents,
)
from seedx_lite.data.tokenizer import llm_tokenizer
from seedx_lite.models.text import token_losses
from seedx_lite.presets import Preset
from seedx_lite.world.scene import SEED_RANGES
from .loop import batch_share, train

PACKED = 512  # tokens of a sample, several documents: what the multimodal model will read is as long
BESIDE = 8  # lessons beside each of these samples, in the second phase


def llama(preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs") -> Path:
    """Trains `LlamaForCausalLM` from nothing; its folder opens with plain transformers. Returns the folder.

    Raises ValueError if the preset has no language model or one of another vocabulary.
    """
    for key, value in (("llm", preset.llm), ("training.llama", preset.training.llama)):
        if value is None:
            raise ValueError(f"preset {preset.name} has no `{key}`; give its entries")
    tokenizer, config, second = llm_tokenizer(), preset.training.llama, preset.training.llama_answers
    for phase in filter(None, (config, second)):  # what cannot be shared out shows before the first phase is over
        batch_share(phase.batch_size)
    if preset.llm.vocab_size != len(tokenizer):
        raise ValueError(f"llm.vocab_size={preset.llm.vocab_size}: expected {len(tokenizer)}, as many as the tokenizer")

    def build(folder: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        model = LlamaForCausalLM(LlamaConfig(**asdict(preset.llm), **ids, tie_word_embeddings=False))
        start, stop = SEED_RANGES["train"]
        length = min(PACKED, preset.llm.max_position_embeddings)

        def batch_at(step: int, share: int, generator: torch.Generator) -> Tensor:
            rng = np.random.default_rng(torch.randint(2**31, (), generator=generator).item())
            texts = (document(pick(SHARES, rng), int(rng.integers(stop - start)), "train", rng) for _ in count())
            return pack_documents(tokenizer, texts, share, length)

        def loss_of(model: nn.Module, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict]:
            losses, told = token_losses(model, batch, tokenizer.pad_token_id)
            loss = losses[told].mean()
            return loss, {"perplexity": loss.detach().exp()}

        def lessons_at(step: int, share: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            packed = batch_at(step, share, generator)
            rng = np.random.default_rng(torch.randint(2**31, (), generator=generator).item())
            lessons = [lesson(int(rng.integers(stop - start)), "train", rng) for _ in range(BESIDE * share)]
            return packed, *encode_lessons(tokenizer, lessons)

        def lesson_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> tuple:
            packed, *lessons = batch
            loss, logs = loss_of(model, packed, generator)
            texts, answers = lesson_losses(model, *lessons, tokenizer.pad_token_id)
            return loss + texts + answers, logs | {"answers": answers.detach()}

        record = train(model, batch_at, loss_of, config, folder, seed=seed, title="language model")
        if second:
            record.save(folder / "texts" / "training.json")
            about = {"seed": seed + 1, "title": "language model, answers"}
            record = train(model, lessons_at, lesson_loss, second, folder / "answers", **about)
        model.to("cpu").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        record.save(folder / "training.json")

    recipe = {"llm": asdict(preset.llm), "training": config.recipe, "shares": SHARES, "questions": MOST_QUESTIONS}
    recipe |= {"packed": PACKED}
    if second:
        recipe |= {"training_answers": second.recipe, "beside": BESIDE}
        recipe |= {"lessons": LESSONS, "lesson_questions": LESSON_QUESTIONS}
    about = {"preset": preset.name, "seed": seed, "config": recipe, "retrain": retrain, "runs": runs}
    return ensure("llama", build, **about)


def lesson_losses(model: nn.Module, ids: Tensor, marks: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of all tokens, and of the marked ones; ids and marks [B, L] as of `encode_lessons`."""
    losses, told = token_losses(model, ids, pad)
    return losses[told].mean(), losses[marks[:, 1:]].mean()
