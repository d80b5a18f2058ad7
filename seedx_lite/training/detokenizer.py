"""Training of the de-tokenizer (paper §3.1 and appendix B; its code was never released).

Stage 1 teaches the U-Net to read visual embeddings in place of text: the resampler learns, and keys and values. Stage 2
adds a condition image, whose latents follow the noisy ones, and trains the whole U-Net. A `Variant` says in what one
de-tokenizer of a comparison differs from the main model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seedx_lite.artifacts import ensure, processes, project_path, read_manifest
from seedx_lite.data.drawn import EMPHASIS, draw_edits
from seedx_lite.data.pictures import softened
from seedx_lite.models.autoencoder import encode_pictures, read_vae
from seedx_lite.models.detokenizer import (
    SDXLAdapter,
    SDXLAdapterWithLatentImage,
    denoising_loss,
    read_adapter,
    sdxl_time_ids,
)
from seedx_lite.models.resamplers import ResamplerXLV2
from seedx_lite.models.vit import VisionTransformerWithAttnPool, pool_embeddings
from seedx_lite.presets import Preset, TrainConfig
from .encoded import kept, kept_embeddings
from .foundations import sdxl, training_scenes
from .loop import train
from .variation import Variation
from .vit import vit

EDITS = 0.75  # share of stage 2's samples that have a condition image; the others are plain pictures, as in stage 1
STAGE2 = {"edits": EDITS, "of_latents": True, "emphasised": "what an edit leaves alone"}  # decides, too


@dataclass(frozen=True, kw_only=True)
class Variant(Variation):
    """What one de-tokenizer of a comparison has otherwise than the preset says (None: as it says)."""

    vit_down: int | None = None  # tokens that are averaged to one visual embedding
    latents: int | None = None  # queries of the resampler
    full_ft: bool = False  # trains the whole U-Net, not keys and values alone
    soften: int = 1  # poorer data: training pictures of so many times fewer pixels a side, scaled up again
    condition: bool = False  # stage 2 with a condition image, from the main model of stage 1

    def __post_init__(self):
        fixed = sorted(self.changes.keys() - {"condition", "learning_rate"}) if self.condition else []
        if fixed:
            raise ValueError(
                f"a variant with a condition image goes on from the main model; leave out {', '.join(fixed)}"
            )

    def n(self, preset: Preset) -> int:
        """Number of visual embeddings N."""
        return preset.vit.n_queries // self.vit_down if self.vit_down else preset.n_embeddings

    def resampler(self, preset: Preset) -> dict[str, int]:
        """Arguments of `ResamplerXLV2`."""
        return preset.resampler_kwargs | ({"num_queries": self.latents} if self.latents else {})


class Parts(NamedTuple):
    """What de-tokenizers are trained with, all of it frozen. vit_id, vae_id: of the artifacts, to keep embeddings and
    latents by."""

    tower: VisionTransformerWithAttnPool
    autoencoder: Any
    scheduler: Any
    vit_id: str
    vae_id: str


def load_parts(vit_folder: Path, sdxl_folder: Path) -> Parts:
    """The foundations in their folders, in float32."""
    from diffusers import DDIMScheduler

    tower = VisionTransformerWithAttnPool.from_pretrained(vit_folder)
    scheduler = DDIMScheduler.from_pretrained(sdxl_folder, subfolder="scheduler")
    ids = (read_manifest(folder)["id"] for folder in (vit_folder, sdxl_folder))
    return Parts(tower, read_vae(sdxl_folder), scheduler, *ids)


class Reconstructions:
    """Samples of stage 1: scenes of the narrow mix with their latents and visual embeddings, all computed once.

    In a tenth of the samples the embeddings are those of the zero picture, as guidance will ask for them. Things count
    more than background in the loss, as in the foundations.
    """

    of_latents = False  # of `denoising_loss`

    def __init__(self, preset: Preset, parts: Parts, n: int, runs: str | Path, split: str = "train", soften: int = 1):
        self.n, self.parts, self.runs, self.split = n, parts, runs, split
        data = training_scenes(preset, "narrow", runs, split=split)
        shown = softened(data.pictures, soften) if soften > 1 else data.pictures
        self.latents, self.embeddings = self._encoded(f"soft{soften}" if soften > 1 else "narrow", shown)
        self.weights = data.weights
        self._shared(preset)

    def _shared(self, preset: Preset) -> None:
        """What all samples have in common."""
        self.time_ids = sdxl_time_ids(preset.image_size)
        with torch.no_grad():
            self.zero = pool_embeddings(self.parts.tower.zero_embeddings(), self.n).cpu()  # [1, N, D]

    def _encoded(self, name: str, pictures: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Latents [K, 4, h, w], and pooled embeddings, float16 [K, N, D]; both are kept in the cache of `runs`, by the
        pictures and what encodes them."""
        parts, name = self.parts, f"{self.split}-{name}"

        def compute() -> Tensor:
            return encode_pictures(parts.autoencoder.to(processes().device), pictures)

        latents = kept(f"latents-{parts.vae_id}-{name}-{{seen}}", pictures, compute, self.runs)
        embeddings = kept_embeddings(parts.tower, parts.vit_id, name, pictures, self.n, self.runs)
        return torch.from_numpy(latents), embeddings

    def batch(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Arguments of `denoising_loss`, drawn with replacement."""
        chosen = torch.randint(len(self.latents), (size,), generator=generator)
        return {
            "latents": self.latents[chosen],
            "image_embeds": torch.from_numpy(self.embeddings[chosen.numpy()]).float(),
            "time_ids": self.time_ids.expand(size, -1),
            "zero_embeds": self.zero,
            "weights": self.weights[chosen],
        }


class EditPairs(Reconstructions):
    """Samples of stage 2: most of them (`EDITS`) scenes after an edit with the scene before it as condition image, or
    the other way round; the others plain scenes with a condition of zeros.

    What an edit leaves alone counts more in the loss: it is to be copied, which is learned late. And it is the error of
    the latents that counts, since what the first steps of sampling miss the later ones keep.
    """

    of_latents = True

    def __init__(self, preset: Preset, parts: Parts, n: int, runs: str | Path, split: str = "train"):
        super().__init__(preset, parts, n, runs, split)
        count, cache = len(self.latents), project_path(runs) / "cache"
        edits = draw_edits(split, count, "narrow", preset.size, cache)
        sides = [
            self._encoded(name, pictures) for name, pictures in (("before", edits.source), ("after", edits.target))
        ]
        self.side_latents = torch.stack([latents for latents, _ in sides])  # [2, K, 4, h, w]
        self.side_embeddings = [embeddings for _, embeddings in sides]
        alone = torch.tensor(edits.outside, dtype=torch.float32)[:, None]  # [K, 1, H, W]
        weights = 1 + (EMPHASIS - 1) * F.adaptive_avg_pool2d(alone, self.latents.shape[-1])
        self.edit_weights = weights / weights.mean()

    def batch(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """As of stage 1, with the latents of the condition images, which are not scaled."""
        team = processes()  # of all samples of a step as many are edits, however many processes share them out
        rank, many = team.process_index, team.num_processes
        total = round(EDITS * size * many)
        edits = total * (rank + 1) // many - total * rank // many
        plain = super().batch(size - edits, generator)
        chosen = torch.randint(len(self.latents), (edits,), generator=generator)
        side = torch.randint(2, (edits,), generator=generator)  # which of the two is to be drawn
        embeddings = [self.side_embeddings[s][k] for s, k in zip(side.tolist(), chosen.tolist(), strict=True)]
        scale = self.parts.autoencoder.config.scaling_factor
        conditions = self.side_latents[1 - side, chosen] / scale
        drawn = {
            "latents": self.side_latents[side, chosen],
            "image_embeds": torch.from_numpy(np.stack(embeddings)).float(),
            "weights": self.edit_weights[chosen],
            "condition": conditions,
        }
        plain["condition"] = torch.zeros_like(plain["latents"])
        joined = {name: torch.cat([plain[name], part]) for name, part in drawn.items()}
        return joined | {"time_ids": self.time_ids.expand(size, -1), "zero_embeds": self.zero}


def new_adapter(preset: Preset, sdxl_folder: Path, variant: Variant = Variant()) -> SDXLAdapter:
    """An untrained resampler on the U-Net of an SDXL folder."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(sdxl_folder, subfolder="unet", dtype=torch.float32)
    pooling = preset.vit.n_queries // variant.n(preset)
    return SDXLAdapter(unet, ResamplerXLV2(**variant.resampler(preset)), full_ft=variant.full_ft, vit_down=pooling)


def train_adapter(
    adapter: SDXLAdapter,
    samples: Reconstructions,
    config: TrainConfig,
    seed: int,
    folder: Path,
    half: Path | None = None,
) -> None:
    """Trains what of `adapter` is to be trained; `folder` gets training.json and the checkpoint.

    half: a folder that gets the weights after half of the steps.
    """

    def batch_at(step: int, share: int, generator: torch.Generator) -> dict[str, Tensor]:
        return samples.batch(share, generator)

    def loss_of(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict]:
        return _loss(model, samples, batch, generator), {}

    title = f"de-tokenizer, stage {2 if isinstance(samples, EditPairs) else 1}"
    visits: dict[int, Callable[[], None]] = {}
    if half:
        visits[config.steps // 2] = lambda: adapter.save_pretrained(half)
    train(adapter, batch_at, loss_of, config, folder, seed=seed, title=title, visits=visits).save(
        folder / "training.json"
    )


@torch.no_grad()
def validation_loss(adapter: SDXLAdapter, samples: Reconstructions, batches: int = 16, size: int = 32) -> float:
    """The training's loss on other samples, with noise and times that are the same for every adapter."""
    losses = []
    for number in range(batches):
        generator = torch.Generator().manual_seed(number)
        batch = samples.batch(size, generator)
        losses.append(_loss(adapter, samples, batch, generator))
    return float(torch.stack(losses).mean())


def _loss(model: nn.Module, samples: Reconstructions, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    scheduler, of_latents = samples.parts.scheduler, samples.of_latents
    return denoising_loss(model, **batch, scheduler=scheduler, generator=generator, of_latents=of_latents)


def half_folder(preset: Preset, cell: str, seed: int, runs: str | Path) -> Path:
    """Where a cell of an ablation leaves its weights after half of the steps."""
    return project_path(runs) / preset.name / "cells" / f"{cell}-seed{seed}-half"


def stage1(
    preset: Preset,
    seed: int = 0,
    retrain: bool = False,
    runs: str | Path = "runs",
    variant: Variant = Variant(),
    cell: str | None = None,
    config: TrainConfig | None = None,
    name: str = "detokenizer-stage1",
) -> Path:
    """Trains resampler, keys and values on the narrow mix; returns the folder of the artifact, `name`.

    variant, cell, config: for a cell of an ablation, its name and its training. Cells of all seeds stand on the
    foundations of seed 0, and leave their weights at half of the steps in `half_folder`.
    """
    foundations = {"seed": seed if cell is None else 0, "runs": runs}
    vit_folder, sdxl_folder = vit(preset, **foundations), sdxl(preset, **foundations)
    config = variant.adjusted(config or preset.training.detokenizer)
    n = variant.n(preset)

    def build(folder: Path) -> None:
        samples = Reconstructions(preset, load_parts(vit_folder, sdxl_folder), n, runs, soften=variant.soften)
        torch.manual_seed(seed)
        adapter = new_adapter(preset, sdxl_folder, variant)
        train_adapter(adapter, samples, config, seed, folder, half=cell and half_folder(preset, cell, seed, runs))
        adapter.save_pretrained(folder)

    recipe = {
        "resampler": variant.resampler(preset),
        "n_embeddings": n,
        "training": config.recipe,
        "emphasis": EMPHASIS,
        "scenes": preset.data.train_scenes,
    }
    recipe |= {name: value for name, value in variant.changes.items() if name in ("full_ft", "soften")}
    about = {"preset": preset.name, "seed": seed, "config": recipe, "upstream": [vit_folder, sdxl_folder]}
    return ensure(cell or name, build, **about, retrain=retrain, runs=runs)


def stage1_unpooled(preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs") -> Path:
    """Stage 1 with all embeddings of the ViT, trained as long: the second main model."""
    return stage1(preset, seed, retrain, runs, Variant(vit_down=1), name="detokenizer-unpooled")


def stage2(
    preset: Preset,
    seed: int = 0,
    retrain: bool = False,
    runs: str | Path = "runs",
    variant: Variant = Variant(condition=True),
    cell: str | None = None,
    config: TrainConfig | None = None,
) -> Path:
    """Trains the whole U-Net with a condition image, from where the main model of stage 1 ended; returns the folder.
    The arguments are as in `stage1`; cells of all seeds start from the main model of seed 0.

    Raises ValueError for a preset without `training.detokenizer_edits`.
    """
    if (config := config or preset.training.detokenizer_edits) is None:
        raise ValueError(f"preset {preset.name} has no `training.detokenizer_edits`; give its entries")
    config, upstream = variant.adjusted(config), {"seed": seed if cell is None else 0, "runs": runs}
    folders = [stage(preset, **upstream) for stage in (vit, sdxl, stage1)]

    def build(folder: Path) -> None:
        started = read_adapter(folders[2], folders[1])
        samples = EditPairs(preset, load_parts(*folders[:2]), preset.n_embeddings, runs)
        torch.manual_seed(seed)
        pooling = started.config["vit_down"]
        adapter = SDXLAdapterWithLatentImage(started.unet, started.resampler, full_ft=True, vit_down=pooling)
        train_adapter(adapter, samples, config, seed, folder, half=cell and half_folder(preset, cell, seed, runs))
        adapter.save_pretrained(folder)

    recipe = {"training": config.recipe, "emphasis": EMPHASIS, "scenes": preset.data.train_scenes} | STAGE2
    about = {"preset": preset.name, "seed": seed, "config": recipe, "upstream": folders}
    return ensure(cell or "detokenizer-stage2", build, **about, retrain=retrain, runs=runs)
