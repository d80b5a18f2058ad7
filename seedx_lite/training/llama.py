"""Pre-training of the language model on the world's language (in the paper: LLaMA2-chat-13B, downloaded).

It learns what can be said of scenes, how questions are answered from a description, and what an edit changes: all in
words, no picture. SEED-X then teaches it to see.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seedx_lite.artifacts import ensure
from seedx_lite.data.prompts import INSTRUCTION, READING
from seedx_lite.data.tokenizer import llm_tokenizer
from seedx_lite.presets import Preset
from seedx_lite.world.edits import sample_edit
from seedx_lite.world.language import DETAILS, caption, full_caption, grounded_description
from seedx_lite.world.questions import questions
from seedx_lite.world.scene import SEED_RANGES, Scene, sample_scene
from .loop import train

SHARES = {"full": 0.25, "partial": 0.1, "one_thing": 0.05, "grounded": 0.15, "questions": 0.25, "edit": 0.2}
MOST_QUESTIONS = 4  # after one description


def document(form: str, index: int, split: str, rng: np.random.Generator) -> str:
    """One text about scene `index` of a split; form: one of `SHARES`. Raises ValueError for another."""
    if form == "edit":
        edit = sample_edit(index, split)
        instruction = INSTRUCTION.format(instruction=edit.instruction)
        return f"{full_caption(edit.source, rng)}\n{instruction}{full_caption(edit.target, rng)}"
    return scene_document(form, sample_scene(index, split), rng)


def scene_document(form: str, scene: Scene, rng: np.random.Generator) -> str:
    """`document` of a given scene, for all forms but `edit`."""
    if form in DETAILS:
        return caption(scene, form, rng)
    if form == "grounded":
        return grounded_description(scene, rng)
    if form != "questions":
        raise ValueError(f"document: form is one of {', '.join(SHARES)}, got {form!r}")
    asked = questions(scene)
    chosen = rng.permutation(len(asked))[: int(rng.integers(1, MOST_QUESTIONS + 1))]
    turns = [f"{READING.format(question=asked[i].text)} {asked[i].answer}" for i in chosen]
    return "\n".join([full_caption(scene, rng), *turns])


def encode_documents(tokenizer, texts: list[str]) -> Tensor:
    """Token ids [B, L] of `<s> text </s>`, padded on the right to the longest. Raises ValueError for unknown words."""
    rows = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if tokenizer.unk_token_id in row:
            raise ValueError(f"the tokenizer does not know a word of {text!r}; add it to the world's vocabulary")
    longest = max(map(len, rows))
    return torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])


def token_losses(model: nn.Module, tokens: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy [B, L - 1] of each token after the first, in nats, and bool [B, L - 1]: no padding."""
    logits = model(input_ids=tokens, attention_mask=(tokens != pad).long()).logits[:, :-1].float()
    return F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none"), tokens[:, 1:] != pad


def llama(preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs") -> Path:
    """Trains `LlamaForCausalLM` from nothing; its folder opens with plain transformers. Returns the folder.

    Raises ValueError if the preset has no language model or one of another vocabulary.
    """
    if preset.llm is None:
        raise ValueError(f"preset {preset.name} has no `llm`; give its sizes")
    tokenizer, config = llm_tokenizer(), preset.training.llama
    if preset.llm.vocab_size != len(tokenizer):
        raise ValueError(f"llm.vocab_size={preset.llm.vocab_size}: expected {len(tokenizer)}, as many as the tokenizer")

    def build(folder: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        model = LlamaForCausalLM(LlamaConfig(**asdict(preset.llm), **ids, tie_word_embeddings=False))
        start, stop = SEED_RANGES["train"]
        shares = torch.tensor(list(SHARES.values()))

        def batch_at(step: int, generator: torch.Generator) -> Tensor:
            count = config.batch_size
            forms = torch.multinomial(shares, count, replacement=True, generator=generator).tolist()
            indices = torch.randint(stop - start, (count,), generator=generator).tolist()
            rng = np.random.default_rng(torch.randint(2**31, (), generator=generator).item())
            names = list(SHARES)
            texts = [document(names[form], index, "train", rng) for form, index in zip(forms, indices, strict=True)]
            return encode_documents(tokenizer, texts)

        def loss_of(model: nn.Module, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict]:
            losses, told = token_losses(model, batch, tokenizer.pad_token_id)
            loss = losses[told].mean()
            return loss, {"perplexity": loss.detach().exp()}

        record = train(model, batch_at, loss_of, config, folder, seed=seed, title="language model")
        model.to("cpu").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        record.save(folder / "training.json")

    recipe = {"llm": asdict(preset.llm), "training": config.recipe, "shares": SHARES, "questions": MOST_QUESTIONS}
    about = {"preset": preset.name, "seed": seed, "config": recipe, "retrain": retrain, "runs": runs}
    return ensure("llama", build, **about)
