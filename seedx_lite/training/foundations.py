"""The text-to-image foundation: VAE and U-Net of SDXL type (in the paper: SDXL itself, downloaded).

The other foundation, the ViT with the text encoders, is in `vit.py`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seedx_lite.artifacts import ensure, project_path
from seedx_lite.data.rendered import rendered
from seedx_lite.models.detokenizer import noise_target
from seedx_lite.presets import Preset
from seedx_lite.training.loop import train
from seedx_lite.training.text import CaptionSource, encode_text, load_text_encoders
from seedx_lite.training.vit import vit

SCHEDULER = {  # SDXL's noise schedule; v = α·noise - σ·picture is learned faster here than the noise alone
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] → float [B, 3, H, W] in -1 to 1, the range of the VAE."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(preset: Preset, seed: int, folder: Path, runs: str | Path):
    """Trains `AutoencoderKL` on crops that cover every row and column, then its decoder alone on full frames.

    Crops are cheaper than frames and more often on a thing; frames teach the sky's corners. Loss: absolute error, that
    of horizontal and vertical differences (edges), and a faint pull of the latents to a unit Gaussian. Its scaling
    factor makes the latents' deviation 1. `folder` gets both records and checkpoints.
    """
    from diffusers import AutoencoderKL

    config, size = preset.training.vae, preset.image_size
    crop = size // 2
    pictures = rendered("train", preset.data.train_scenes, "broad", (size, size), project_path(runs) / "cache")
    torch.manual_seed(seed)
    model = AutoencoderKL(**preset.vae.kwargs, sample_size=size)

    def batch_at(step: int, generator: torch.Generator) -> Tensor:
        whole = step % 8 == 0 or step > 0.85 * config.steps
        count = max(1, config.batch_size // 4) if whole else config.batch_size
        chosen = torch.randint(len(pictures), (count,), generator=generator).numpy()
        if whole:
            return to_tensor(pictures[chosen])
        # Corners drawn beyond the frame and pushed back make the borders as frequent as the middle.
        corners = torch.randint(-crop // 4, crop + crop // 4 + 1, (count, 2), generator=generator).clamp(0, crop)
        cut = [pictures[i, y : y + crop, x : x + crop] for i, (y, x) in zip(chosen, corners.tolist(), strict=True)]
        return to_tensor(np.stack(cut))

    def loss_of(model: nn.Module, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict]:
        posterior = model.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(batch.device)
        decoded = model.decode(posterior.mean + posterior.std * noise).sample.float()
        pixels = F.l1_loss(decoded, batch)
        edges = sum(F.l1_loss(decoded.diff(dim=d), batch.diff(dim=d)) for d in (2, 3))
        pull = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        logs = {"pixels": pixels.detach(), "edges": edges.detach(), "kl": pull.detach()}
        return pixels + edges + 1e-4 * pull, logs

    def frames_at(step: int, generator: torch.Generator) -> Tensor:
        count = preset.training.vae_decoder.batch_size
        return to_tensor(pictures[torch.randint(len(pictures), (count,), generator=generator).numpy()])

    train(model, batch_at, loss_of, config, folder, seed=seed, title="VAE").save(folder / "training.json")
    for part in (model.encoder, model.quant_conv):  # the U-Net's latents stay what they are
        part.requires_grad_(False)
    finish, title = preset.training.vae_decoder, "VAE, decoder on full frames"
    record = train(model, frames_at, loss_of, finish, folder / "decoder", seed=seed, title=title)
    record.save(folder / "decoder" / "training.json")
    latents = encode_pictures(model, pictures[:512])
    model.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return model


@torch.no_grad()
def encode_pictures(model, pictures: np.ndarray, batch: int = 64) -> Tensor:
    """Latent means of uint8 pictures [K, H, W, 3], not yet times the scaling factor: [K, 4, H/f, W/f]."""
    from tqdm.auto import tqdm

    starts = range(0, len(pictures), batch)
    parts = [
        model.encode(to_tensor(pictures[i : i + batch]).to(model.device)).latent_dist.mean.float().cpu()
        for i in tqdm(starts, desc="latents", disable=len(starts) < 20)
    ]
    return torch.cat(parts)


def train_unet(preset: Preset, seed: int, folder: Path, runs: str | Path, autoencoder, text, scheduler):
    """Trains the text-to-image U-Net on the broad mix: full, partial and one-thing captions.

    text: tokenizer and both encoders. Every tenth caption is dropped to zeros, as the pipeline makes its unconditional
    input. Latents are computed once. `folder` gets training.json and the checkpoint.
    """
    from diffusers import UNet2DConditionModel

    config, size = preset.training.sdxl, preset.image_size
    tokenizer, *encoders = text
    captions = CaptionSource(tokenizer, "train", preset.data.train_scenes, "broad", (size, size))
    pictures = rendered("train", preset.data.train_scenes, "broad", (size, size), project_path(runs) / "cache")
    latents = encode_pictures(autoencoder, pictures) * autoencoder.config.scaling_factor
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**preset.unet_kwargs)
    time_ids = sdxl_time_ids(size)

    def batch_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randint(len(latents), (config.batch_size,), generator=generator)
        context, pooled = encode_text(encoders, captions.tokens(chosen.tolist(), generator))
        kept = (torch.rand(len(chosen), generator=generator) >= 0.1).float()
        return {
            "latents": latents[chosen],
            "context": context * kept[:, None, None],
            "pooled": pooled * kept[:, None],
            "noise": torch.randn(len(chosen), *latents.shape[1:], generator=generator),
            "times": torch.randint(scheduler.config.num_train_timesteps, (len(chosen),), generator=generator),
        }

    def loss_of(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict]:
        latents, noise, times = batch["latents"], batch["noise"], batch["times"]
        noisy = scheduler.add_noise(latents, noise, times)
        extra = {"text_embeds": batch["pooled"], "time_ids": time_ids.to(latents.device).expand(len(latents), -1)}
        predicted = model(noisy, times, batch["context"], added_cond_kwargs=extra).sample.float()
        return F.mse_loss(predicted, noise_target(scheduler, latents, noise, times)), {}

    record = train(unet, batch_at, loss_of, config, folder, seed=seed, title="text-to-image U-Net")
    record.save(folder / "training.json")
    return unet.to("cpu")


def sdxl_time_ids(size: int) -> Tensor:
    """SDXL's size conditioning, uncropped: original size, crop corner, target size in px, [1, 6]."""
    return torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32)


def sdxl(preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs") -> Path:
    """Trains VAE and U-Net and writes a folder that plain diffusers opens as `StableDiffusionXLPipeline`."""
    vit_folder = vit(preset, seed=seed, runs=runs)

    def build(folder: Path) -> None:
        from diffusers import DDIMScheduler, StableDiffusionXLPipeline

        text = load_text_encoders(vit_folder)
        scheduler = DDIMScheduler(**SCHEDULER)
        autoencoder = train_vae(preset, seed, folder / "vae", runs)
        unet = train_unet(preset, seed, folder / "unet", runs, autoencoder, text, scheduler)
        tokenizer, first, second = text
        StableDiffusionXLPipeline(
            vae=autoencoder,
            text_encoder=first,
            text_encoder_2=second,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        ).save_pretrained(folder)

    config = {
        "vae": asdict(preset.vae),
        "unet": preset.unet_kwargs,
        "training": {name: asdict(getattr(preset.training, name)) for name in ("vae", "vae_decoder", "sdxl")},
        "data": asdict(preset.data),
        "scheduler": SCHEDULER,
    }
    return ensure(
        "sdxl",
        build,
        preset=preset.name,
        seed=seed,
        config=config,
        upstream=[vit_folder],
        retrain=retrain,
        runs=runs,
    )
