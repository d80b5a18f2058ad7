"""Training of the de-tokenizer (paper §3.1, App. B): visual embeddings in, a picture out.

Stage 1: the resampler, and the keys and values of the text-to-image U-Net, learn to read the frozen ViT's embeddings
where text used to be.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from seedx_lite.artifacts import ensure, processes
from seedx_lite.data.drawn import EMPHASIS
from seedx_lite.models.autoencoder import encode_pictures
from seedx_lite.models.detokenizer import SDXLAdapter, denoising_loss, sdxl_time_ids
from seedx_lite.models.resamplers import ResamplerXLV2
from seedx_lite.models.vit import VisionTransformerWithAttnPool, embed_pictures, pool_embeddings
from seedx_lite.presets import Preset
from .foundations import sdxl, training_scenes
from .loop import train
from .vit import vit


def new_adapter(preset: Preset, sdxl_folder: Path, full_ft: bool = False, n: int | None = None) -> SDXLAdapter:
    """An untrained resampler on the U-Net of an SDXL folder; `n` visual embeddings instead of the preset's."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(sdxl_folder, subfolder="unet", dtype=torch.float32)
    pooling = preset.vit.n_queries // (n or preset.n_embeddings)
    return SDXLAdapter(unet, ResamplerXLV2(**preset.resampler_kwargs), full_ft=full_ft, vit_down=pooling)


def train_stage1(
    preset: Preset, seed: int, folder: Path, adapter: SDXLAdapter, tower, autoencoder, scheduler, runs: str | Path
) -> None:
    """Trains what of `adapter` is to be trained, on the narrow mix; `folder` gets training.json and the checkpoint.

    In a tenth of the samples the embeddings are those of the zero picture, as guidance will ask for them. Things count
    more than background in the loss, as in the foundations. Embeddings and latents are computed once.
    """
    config, size, device = preset.training.detokenizer, preset.image_size, processes().device
    n = preset.n_embeddings
    data = training_scenes(preset, "narrow", runs)
    latents = encode_pictures(autoencoder.to(device), data.pictures)
    embeddings = embed_pictures(tower.to(device), data.pictures, n, torch.float16)
    with torch.no_grad():
        zero = pool_embeddings(tower.zero_embeddings(), n).cpu()  # [1, N, D]

    def batch_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randint(len(latents), (config.batch_size,), generator=generator)
        return {
            "latents": latents[chosen],
            "image_embeds": embeddings[chosen].float(),
            "time_ids": sdxl_time_ids(size).expand(len(chosen), -1),
            "zero_embeds": zero,
            "weights": data.weights[chosen],
        }

    def loss_of(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict]:
        return denoising_loss(model, **batch, scheduler=scheduler, generator=generator), {}

    record = train(adapter, batch_at, loss_of, config, folder, seed=seed, title="de-tokenizer, stage 1")
    record.save(folder / "training.json")


def stage1(preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs") -> Path:
    """Trains resampler, keys and values on the narrow mix; returns the folder of the artifact."""
    vit_folder, sdxl_folder = vit(preset, seed=seed, runs=runs), sdxl(preset, seed=seed, runs=runs)

    def build(folder: Path) -> None:
        from diffusers import AutoencoderKL, DDIMScheduler

        scheduler = DDIMScheduler.from_pretrained(sdxl_folder, subfolder="scheduler")
        autoencoder = AutoencoderKL.from_pretrained(sdxl_folder, subfolder="vae", dtype=torch.float32).eval()
        tower = VisionTransformerWithAttnPool.from_pretrained(vit_folder)
        torch.manual_seed(seed)
        adapter = new_adapter(preset, sdxl_folder)
        train_stage1(preset, seed, folder, adapter, tower, autoencoder, scheduler, runs)
        adapter.save_pretrained(folder)

    recipe = {
        "resampler": preset.resampler_kwargs,
        "n_embeddings": preset.n_embeddings,
        "training": preset.training.detokenizer.recipe,
        "emphasis": EMPHASIS,
        "scenes": preset.data.train_scenes,
    }
    about = {"preset": preset.name, "seed": seed, "config": recipe, "upstream": [vit_folder, sdxl_folder]}
    return ensure("detokenizer-stage1", build, **about, retrain=retrain, runs=runs)
