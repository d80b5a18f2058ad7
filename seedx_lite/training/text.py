"""The two CLIP text encoders: making, loading and running them, and captions by the thousand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seedx_lite.data.tokenizer import clip_tokenizer
from seedx_lite.presets import Preset, TextConfig
from seedx_lite.world.language import DETAILS, caption
from seedx_lite.world.scene import sample_scene

FOLDERS = ("tokenizer", "text_encoder", "text_encoder_2")  # as in a StableDiffusionXLPipeline folder


def new_text_encoders(preset: Preset):
    """An untrained tokenizer, `CLIPTextModel` and `CLIPTextModelWithProjection`."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer(preset.text_encoder.max_position_embeddings)

    def config(sizes: TextConfig) -> CLIPTextConfig:
        return CLIPTextConfig(
            **vars(sizes),
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_act="gelu",
        )

    first = CLIPTextModel(config(preset.text_encoder))
    return tokenizer, first, CLIPTextModelWithProjection(config(preset.text_encoder_2))


def load_text_encoders(folder: str | Path):
    """Tokenizer and both encoders, in eval mode and float32, from an SDXL folder or the ViT's artifact."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

    folder = Path(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    first = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
    return tokenizer, first.eval(), second.eval()


@torch.no_grad()
def encode_text(encoders: Sequence[torch.nn.Module], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids [B, L] → what conditions SDXL: both penultimate layers side by side [B, L, D1 + D2], and the pooled
    projection of the second encoder [B, D2]."""
    first, second = (encoder(tokens, output_hidden_states=True) for encoder in encoders)
    context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return context.float(), second.text_embeds.float()


class CaptionSource:
    """Captions of a split's scenes, tokenized; the wording is drawn anew at every use.

    details: names of `language.DETAILS` with their shares.
    """

    def __init__(
        self,
        tokenizer,
        split: str,
        count: int,
        mix: str,
        size: tuple[int, int],
        details: dict[str, float] | None = None,
    ):
        self.tokenizer = tokenizer
        self.scenes = [sample_scene(index, split, mix, size) for index in range(count)]
        details = details or {"full": 0.6, "partial": 0.3, "one_thing": 0.1}
        unknown = set(details) - set(DETAILS)
        if unknown:
            raise ValueError(f"details: {sorted(unknown)} unknown, expected some of {', '.join(DETAILS)}")
        self.names, self.shares = list(details), torch.tensor(list(details.values()))

    def tokens(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        """Token ids [B, L] of one caption for each scene, padded to the model's length as SDXL's pipeline does."""
        seeds = torch.randint(2**31, (len(indices),), generator=generator).tolist()
        kinds = torch.multinomial(self.shares, len(indices), replacement=True, generator=generator).tolist()
        texts = [
            caption(self.scenes[index], self.names[kind], np.random.default_rng(seed))
            for index, kind, seed in zip(indices, kinds, seeds, strict=True)
        ]
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(texts, **options).input_ids
