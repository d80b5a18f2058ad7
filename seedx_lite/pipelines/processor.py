"""From pictures and texts to what the language model takes."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from seedx_lite.data.collate import collate
from seedx_lite.data.layout import Layout, Sample, Turn
from seedx_lite.data.prompts import INSTRUCTION
from seedx_lite.models.vit import preprocess

MOST_ELONGATED = 0.2  # ratio of the sides of a picture in a dialogue: no grid of sub-images is that long


class LVLMProcessor:
    """Pictures and texts in; ids, masks, sub-images and their positions out.

    `layout` says how; its `base_resolution` is the image size of the vision encoder.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The sub-images of all pictures in order, each whole one last, for the vision encoder: [M, 3, S, S]."""
        side = self.layout.base_resolution
        if not pictures:
            return torch.zeros(0, 3, side, side)
        return preprocess([square for picture in pictures for square in self.layout.squares(picture)], side)

    def __call__(
        self, texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]] | None = None, draw: bool = False
    ) -> dict[str, Tensor | None]:
        """Prompts for `ContinuousLVLM.generate`, padded on the left, under the names of its arguments; but instead of
        `image_embeds` there are `pixel_values` [M, 3, S, S], None without pictures: `vit(pixel_values)` are those.

        texts: in one of the forms of `data/prompts.py`. pictures: those of each text. draw: each is to be answered with
        a picture at once. Raises ValueError unless there are as many lists as texts, and as `Layout.prompt` does.
        """
        pictures = [()] * len(texts) if pictures is None else pictures
        if len(pictures) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(pictures)} lists of pictures; expected one list per text")
        sizes = ([picture.size for picture in some] for some in pictures)
        samples = [self.layout.prompt(text, own, draw) for text, own in zip(texts, sizes, strict=True)]
        return self._batch(samples, pictures)

    def dialogues(
        self, dialogues: Sequence[Sequence[Turn]], pictures: Sequence[Sequence[Image.Image]]
    ) -> dict[str, Tensor | None]:
        """The same for dialogues whose last question is open, in the form of instructions. pictures: those that each of
        them shows, in order. Raises ValueError as `Layout.ask` does, also for a picture with a side of less than a
        quarter of what the vision encoder reads."""
        limits = {"min_resolution": self.layout.base_resolution // 4, "min_aspect_ratio": MOST_ELONGATED}
        layout = replace(self.layout, instruction=INSTRUCTION, **limits)
        return self._batch([layout.ask(turns) for turns in dialogues], pictures)

    def _batch(self, samples: Sequence[Sample], pictures: Sequence[Sequence[Image.Image]]) -> dict[str, Tensor | None]:
        batch = collate(samples, self.layout.tokenizer.pad_token_id, left=True)
        pixels = self.pixels([picture for some in pictures for picture in some])
        names = ("input_ids", "attention_mask", "ids_cmp_mask", "embeds_cmp_mask", "patch_positions")
        return {name: batch[name] for name in names} | {"pixel_values": pixels if len(pixels) else None}
