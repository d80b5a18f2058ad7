"""The de-tokenizer tuned further: on what the language model predicts, as the paper advises against, or on controls.

The paper (§3.1) keeps the de-tokenizer apart from the language model, since tuning it on predicted features made its
pictures monotonous; no code or number was released.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seedx_lite.artifacts import ensure, read_manifest
from seedx_lite.data.drawn import scenes
from seedx_lite.models.detokenizer import read_adapter
from seedx_lite.pipelines.assistant import SeedX
from seedx_lite.presets import Preset, TrainConfig
from seedx_lite.world.language import full_caption
from .detokenizer import Parts, Reconstructions, load_parts, stage1, train_adapter
from .encoded import kept
from .foundations import sdxl, training_scenes
from .mllm import mllm
from .variation import Variation
from .vit import vit

FEATURES = {
    "vit": "visual embeddings of the pictures: the control, as many steps more",
    "mllm": "what the language model predicts from their captions, which it was not trained on",
    "noisy": "visual embeddings with noise, as a middle way (arXiv 2510.11690)",
}
SCENES, NOISE = 8000, 0.5  # how many scenes at most; most noise, in deviations of the embeddings


@dataclass(frozen=True, kw_only=True)
class Tuning(Variation):
    """One tuning of the main de-tokenizer: on which of `FEATURES`."""

    features: str = "vit"

    def __post_init__(self):
        if self.features not in FEATURES:
            raise ValueError(f"features={self.features!r}: expected one of {', '.join(FEATURES)}")


class Imagined(Reconstructions):
    """Samples of a tuning: as of stage 1, of scenes that the language model was not trained on. assistant: the folders
    of `SeedX.from_artifacts`. Raises ValueError for a preset without such scenes."""

    def __init__(self, preset: Preset, parts: Parts, features: str, assistant: dict[str, Path], runs, split="train"):
        self.n, self.parts, self.runs, self.split, self.features = preset.n_embeddings, parts, runs, split, features
        first, last = 0, preset.data.validation_scenes
        if split == "train":
            first, last = preset.data.train_scenes, min(preset.data.second, preset.data.train_scenes + SCENES)
        if first == last:
            raise ValueError("data.second_scenes is data.train_scenes: a tuning needs scenes that are new")
        data = training_scenes(preset, "narrow", runs, last, split)
        pictures, chosen = data.pictures[first:last], scenes(split, last, "narrow", preset.size)[first:]
        self.latents, self.embeddings = self._encoded("tuning", pictures)
        self.weights = data.weights[first:]
        self._shared(preset)
        if features == "mllm":

            def compute() -> Tensor:
                seedx = SeedX.from_artifacts(**assistant)
                captions = [full_caption(scene, np.random.default_rng([0, k])) for k, scene in enumerate(chosen)]
                return seedx.imagine(captions).half()

            name = f"imagined-{read_manifest(assistant['mllm'])['id']}-{split}-{{seen}}"
            self.embeddings = kept(name, pictures, compute, runs, mmap_mode="r")
        self.deviation = torch.from_numpy(self.embeddings[:512].astype(np.float32)).flatten(0, 1).std(0)  # [K]

    def batch(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = super().batch(size, generator)
        if self.features == "noisy":
            # From a generator of its own, so that noise and times of the loss are those of the other tunings
            embeds, own = batch["image_embeds"], torch.Generator().manual_seed(generator.initial_seed() + 1)
            level = NOISE * torch.rand(size, 1, 1, generator=own) * self.deviation
            batch["image_embeds"] = embeds + level * torch.randn(embeds.shape, generator=own)
        return batch


def tuned(preset: Preset, seed: int, tuning: Tuning, cell: str, config: TrainConfig, runs: str | Path = "runs") -> Path:
    """Trains what stage 1 trains, from where the main model of seed 0 ended; returns the folder of the artifact."""
    stages = {"mllm": mllm, "vit": vit, "sdxl": sdxl, "adapter": stage1}
    folders = {name: stage(preset, runs=runs) for name, stage in stages.items()}
    config = tuning.adjusted(config)

    def build(folder: Path) -> None:
        samples = Imagined(preset, load_parts(folders["vit"], folders["sdxl"]), tuning.features, folders, runs)
        torch.manual_seed(seed)
        adapter = read_adapter(folders["adapter"], folders["sdxl"])
        train_adapter(adapter, samples, config, seed, folder)
        adapter.save_pretrained(folder)

    recipe = {"features": tuning.features, "training": config.recipe, "noise": NOISE, "scenes": SCENES}
    about = {"preset": preset.name, "seed": seed, "config": recipe, "upstream": list(folders.values())}
    return ensure(cell, build, **about, runs=runs)
