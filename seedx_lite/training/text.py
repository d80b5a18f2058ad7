"""What text-to-image training needs of language: new text encoders, and captions by the thousand."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from seedx_lite.data.tokenizer import clip_tokenizer
from seedx_lite.presets import Preset, TextConfig
from seedx_lite.world.language import DETAILS, caption, full_caption, grounded_description, unmarked
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
        writers = {name: partial(caption, detail=name) for name in DETAILS}
        writers |= {"full": partial(full_caption, marked=True), "grounded": partial(grounded_description, marked=True)}
        if unknown := set(details) - set(writers):
            raise ValueError(f"details: {sorted(unknown)} unknown, expected some of {', '.join(writers)}")
        self.tokenizer = tokenizer
        self.scenes = [sample_scene(index, split, mix, size) for index in range(count)]
        self.most = max(len(scene.things) for scene in self.scenes)
        self.writers, self.shares = [writers[name] for name in details], torch.tensor(list(details.values()))

    def tokens(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        """Token ids [B, L] of one caption for each scene, padded to the model's length as SDXL's pipeline does."""
        return self.marked_tokens(indices, generator)[0]

    def marked_tokens(self, indices: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`tokens`, and [B, M] for each thing of a scene the position of the last token of its words. Such a token has
        read all that is said of its thing. -1 where nothing, or not where it is, is said."""
        seeds = torch.randint(2**31, (len(indices),), generator=generator).tolist()
        chosen = torch.multinomial(self.shares, len(indices), replacement=True, generator=generator).tolist()
        written = [
            unmarked(self.writers[writer](self.scenes[index], rng=np.random.default_rng(seed)))
            for index, writer, seed in zip(indices, chosen, seeds, strict=True)
        ]
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids = self.tokenizer([text for text, _ in written], **options).input_ids
        last = torch.full((len(indices), self.most), -1)
        for row, (_, ends) in enumerate(written):
            for thing, end in ends.items():
                last[row, thing] = end if end < ids.shape[1] else -1  # word 1 is token 1, behind <s>
        return ids, last
