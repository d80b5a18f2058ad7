"""What text-to-image training needs of language: new text encoders, and captions by the thousand."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor

from seedx_lite.data.tokenizer import clip_tokenizer
from seedx_lite.presets import Preset, TextConfig
from seedx_lite.world.language import DETAILS, caption, grounded_description
from seedx_lite.world.scene import sample_scene

FOLDERS = ("tokenizer", "text_encoder", "text_encoder_2")  # as in a StableDiffusionXLPipeline folder


def new_text_encoders(preset: Preset):
    """An untrained tokenizer, `CLIPTextModel` and `CLIPTextModelWithProjection`."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer(preset.text_encoder.max_position_embeddings)

    def config(sizes: TextConfig) -> CLIPTextConfig:
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        return CLIPTextConfig(**vars(sizes), vocab_size=len(tokenizer), hidden_act="gelu", **special)

    first = CLIPTextModel(config(preset.text_encoder))
    return tokenizer, first, CLIPTextModelWithProjection(config(preset.text_encoder_2))


class CaptionSource:
    """Captions of a split's scenes, tokenized; the wording is drawn anew at every use.

    details: names of `language.DETAILS`, or `grounded` for descriptions with boxes, with their shares.
    """

    def __init__(self, tokenizer, split: str, count: int, mix: str, size: tuple[int, int], details: dict[str, float]):
        self.tokenizer = tokenizer
        self.scenes = [sample_scene(index, split, mix, size) for index in range(count)]
        self._set_shares(details)

    def _set_shares(self, details: dict[str, float]) -> None:
        writers = {name: partial(caption, detail=name) for name in DETAILS} | {"grounded": grounded_description}
        if unknown := set(details) - set(writers):
            raise ValueError(f"details: {sorted(unknown)} unknown, expected some of {', '.join(writers)}")
        self.writers, self.shares = [writers[name] for name in details], torch.tensor(list(details.values()))

    def with_shares(self, details: dict[str, float]) -> Self:
        """Captions of the same scenes in other shares."""
        other = copy.copy(self)
        other._set_shares(details)
        return other

    def tokens(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        """Token ids [B, L] of one caption for each scene, padded to the model's length as SDXL's pipeline does."""
        seeds = torch.randint(2**31, (len(indices),), generator=generator).tolist()
        chosen = torch.multinomial(self.shares, len(indices), replacement=True, generator=generator).tolist()
        texts = [
            self.writers[writer](self.scenes[index], rng=np.random.default_rng(seed))
            for index, writer, seed in zip(indices, chosen, seeds, strict=True)
        ]
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(texts, **options).input_ids
