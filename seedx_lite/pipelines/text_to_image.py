"""Pictures from captions by a `StableDiffusionXLPipeline` of plain diffusers, each with noise of its own."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from seedx_lite.artifacts import MANIFEST, check
from seedx_lite.data.tokenizer import check_words
from seedx_lite.models.precision import quick_sampling

STEPS, GUIDANCE = 25, 3.0


def noise(seed: int, places: Iterable[int]) -> list[torch.Generator]:
    """The sources of noise of pictures at these places, each by its place and `seed` alone."""
    return [torch.Generator().manual_seed(1_000_000 * seed + place) for place in places]


def load_pipeline(folder: str | Path):
    """The folder as plain diffusers opens it, in float32, silent. Raises FileNotFoundError or ValueError that names
    the file if one of an artifact's is missing or damaged."""
    from diffusers import StableDiffusionXLPipeline

    if Path(folder, MANIFEST).is_file():  # else it is not ours, and diffusers judges it
        check(Path(folder))
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_captions(
    pipe,
    captions: Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 32,
    quick: bool = False,
    indices: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """A picture uint8 [H, W, 3] for each caption; its noise depends on its index and `seed` only.

    indices: one for each caption; None: their positions in the list. quick: in bf16 where the device has units for it,
    see `quick_sampling`; else in float32, as machines agree best. Raises ValueError for a caption that is too long or
    has words that the tokenizer does not know, naming them, and for another number of indices.
    """
    check_words(pipe.tokenizer, captions)
    longest = pipe.tokenizer.model_max_length
    for caption, ids in zip(captions, pipe.tokenizer(list(captions), verbose=False).input_ids, strict=True):
        if len(ids) > longest:
            raise ValueError(f"a caption of {len(ids)} tokens, expected {longest} at most: {caption!r:.80}")
    indices = range(len(captions)) if indices is None else indices
    if len(indices) != len(captions):
        raise ValueError(f"{len(indices)} indices for {len(captions)} captions; give one for each")
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    pictures: list[np.ndarray] = []
    for start in tqdm(range(0, len(captions), batch), desc="pictures from captions", disable=len(captions) <= batch):
        part = list(captions[start : start + batch])
        generators = noise(seed, indices[start : start + batch])
        settings = {"height": size, "width": size, "num_inference_steps": steps, "guidance_scale": guidance}
        with quick_sampling(pipe.device) if quick else nullcontext():
            pictures += [np.asarray(image) for image in pipe(part, generator=generators, **settings).images]
    return pictures
