"""The text-to-image foundation: VAE and U-Net of SDXL type (in the paper: SDXL itself, downloaded).

The other foundation, the ViT with the text encoders, is in `vit.py`.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seedx_lite.artifacts import ensure, project_path
from seedx_lite.data.drawn import EMPHASIS, draw_scenes, thing_weights
from seedx_lite.models.detokenizer import noise_target, sdxl_time_ids
from seedx_lite.models.text import encode_text, load_text_encoders
from seedx_lite.presets import Preset
from .loop import train
from .text import CaptionSource
from .vit import vit

SCHEDULER = {  # SDXL's noise schedule; v = α·noise - σ·picture is learned faster here than the noise alone
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    "clip_sample": False,
    "set_alpha_to_one": True,
}


PLACES = 0.1  # weight of the places that are read from the queries of the cross-attention
CAPTIONS = {"full": 0.4, "partial": 0.1, "one_thing": 0.1, "grounded": 0.4}  # shares of the kinds
LONG_CAPTIONS = {"full": 0.6, "partial": 0.1, "one_thing": 0.1, "grounded": 0.2}  # of `sdxl_long`
SNR_LIMIT = 5.0  # of `sdxl_long`: see `snr_weights`


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] → float [B, 3, H, W] in -1 to 1, the range of the VAE."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def training_scenes(preset: Preset, mix: str, runs: str | Path) -> tuple[np.ndarray, Tensor]:
    """Pictures of all training scenes, uint8 [K, H, W, 3], and how much each place of a latent counts in a loss,
    [K, 1, h, w], with the mean 1: things more than background."""
    grid, size, latent = round(preset.vit.n_queries**0.5), preset.image_size, preset.unet.sample_size
    drawn = draw_scenes("train", preset.data.train_scenes, mix, (size, size), grid, project_path(runs) / "cache")
    weights = thing_weights(torch.tensor(drawn.kind).float()).unflatten(1, (1, grid, grid))
    return drawn.pictures, F.adaptive_avg_pool2d(weights, latent)


def train_vae(preset: Preset, seed: int, folder: Path, pictures: np.ndarray, weights: Tensor):
    """Trains `AutoencoderKL` on full frames; `folder` gets training.json and the checkpoint.

    Loss: absolute error, that of horizontal and vertical differences (edges), both with things emphasised, and a faint
    pull of the latents to a unit Gaussian. The scaling factor makes the latents' deviation 1.
    pictures, weights: see `training_scenes`.
    """
    from diffusers import AutoencoderKL

    config = preset.training.vae
    torch.manual_seed(seed)
    model = AutoencoderKL(**preset.vae.kwargs, sample_size=preset.image_size)

    def batch_at(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(pictures), (config.batch_size,), generator=generator)
        return to_tensor(pictures[chosen.numpy()]), weights[chosen]

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, dict]:
        images, weight = batch
        weight = F.interpolate(weight, images.shape[-2:])  # [B, 1, H, W]
        posterior = model.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(images.device)
        error = model.decode(posterior.mean + posterior.std * noise).sample.float() - images
        pixels = (error.abs() * weight).mean()
        edges = (error.diff(dim=2).abs() * weight[:, :, 1:]).mean() + (error.diff(dim=3).abs() * weight[..., 1:]).mean()
        pull = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        logs = {"pixels": pixels.detach(), "edges": edges.detach(), "kl": pull.detach()}
        return pixels + edges + 1e-4 * pull, logs

    train(model, batch_at, loss_of, config, folder, seed=seed, title="VAE").save(folder / "training.json")
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


class _TextToImage(nn.Module):
    """U-Net and text encoders. The first encoder goes on learning here, the second stays with the ViT.

    A linear map beside each cross-attention reads from every query where its cell is. Keys can be addressed to a place
    only if the queries tell theirs, and the loss of the noise alone need not teach that within an hour.
    """

    def __init__(self, unet: nn.Module, first: nn.Module, second: nn.Module):
        super().__init__()
        self.unet, self.first, self.second = unet, first, second.requires_grad_(False)
        asking = [module for name, module in unet.named_modules() if name.endswith("attn2.to_q")]
        self.readers = nn.ModuleList(nn.Linear(layer.out_features, 2) for layer in asking)
        self._places: list[Tensor] = []  # of the latest step: read from the queries of each layer, [B, g·g, 2]
        self.hooks = [
            layer.register_forward_hook(lambda _, __, queries, reader=reader: self._places.append(reader(queries)))
            for layer, reader in zip(asking, self.readers, strict=True)
        ]

    def forward(
        self, noisy: Tensor, times: Tensor, tokens: Tensor, kept: Tensor, time_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Prediction [B, 4, h, w], and mean squared error of the places read, in units of half a side.

        kept [B]: 0 where the caption is dropped, to zeros, as the pipeline makes its unconditional input.
        """
        context, pooled = encode_text((self.first, self.second), tokens)
        extra = {"text_embeds": pooled * kept[:, None], "time_ids": time_ids.expand(len(noisy), -1)}
        self._places.clear()
        sample = self.unet(noisy, times, context * kept[:, None, None], added_cond_kwargs=extra).sample
        errors = []
        for read in self._places:
            axis = torch.linspace(-1, 1, round(read.shape[1] ** 0.5), device=read.device)
            places = torch.cartesian_prod(axis, axis)  # [g·g, 2]: row, column
            errors.append((read.float() - places).square().mean())
        return sample, torch.stack(errors).mean()


def snr_weights(scheduler, times: Tensor, limit: float = SNR_LIMIT) -> Tensor:
    """How much each timestep [B] counts in the loss of v-prediction: min(SNR, limit) / (SNR + 1) (arXiv 2303.09556),
    over its mean. Steps with hardly any noise teach texture, which is learned first, and would drown the others."""
    powers = scheduler.alphas_cumprod.to(times.device)
    ratio = powers / (1 - powers)
    weights = ratio.clamp(max=limit) / (ratio + 1)
    return (weights / weights.mean())[times]


def train_unet(
    preset: Preset, seed: int, folder: Path, pictures: np.ndarray, weights: Tensor, autoencoder, text, scheduler
):
    """Trains the text-to-image U-Net on the broad mix; every tenth caption is dropped, for guidance.

    Descriptions with boxes among the captions teach it to put things where it is told to. Things are emphasised.
    pictures, weights: as for `train_vae`. text: tokenizer and both encoders, of which the first is trained along.
    Latents are computed once. `folder` gets training.json and the checkpoint.
    """
    from diffusers import UNet2DConditionModel

    config, longer, size = preset.training.sdxl, preset.training.sdxl_long, preset.image_size
    captions = CaptionSource(text[0], "train", len(pictures), "broad", (size, size), CAPTIONS)
    latents = encode_pictures(autoencoder, pictures) * autoencoder.config.scaling_factor
    torch.manual_seed(seed)
    model = _TextToImage(UNet2DConditionModel(**preset.unet_kwargs), *text[1:])

    def batch_at(
        step: int, generator: torch.Generator, captions=captions, count=config.batch_size
    ) -> dict[str, Tensor]:
        chosen = torch.randint(len(latents), (count,), generator=generator)
        return {
            "latents": latents[chosen],
            "weights": weights[chosen],
            "tokens": captions.tokens(chosen.tolist(), generator),
            "kept": (torch.rand(len(chosen), generator=generator) >= 0.1).float(),
            "noise": torch.randn(len(chosen), *latents.shape[1:], generator=generator),
            "times": torch.randint(scheduler.config.num_train_timesteps, (len(chosen),), generator=generator),
            "time_ids": sdxl_time_ids(size),
        }

    def long_batch_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = batch_at(step, generator, captions.with_shares(LONG_CAPTIONS), longer.batch_size)
        return batch | {"weights": batch["weights"] * snr_weights(scheduler, batch["times"])[:, None, None, None]}

    def loss_of(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict]:
        latents, noise, times = batch["latents"], batch["noise"], batch["times"]
        noisy = scheduler.add_noise(latents, noise, times)
        predicted, places = model(noisy, times, batch["tokens"], batch["kept"], batch["time_ids"])
        errors = (predicted.float() - noise_target(scheduler, latents, noise, times)).square()
        logs = {"plain": errors.detach().mean(), "places": places.detach()}
        return (errors * batch["weights"]).mean() + PLACES * places, logs

    record = train(model, batch_at, loss_of, config, folder, seed=seed, title="text-to-image U-Net")
    if longer:
        record.save(_made(folder / "first") / "training.json")
        title = "text-to-image U-Net, longer"
        record = train(model, long_batch_at, loss_of, longer, folder / "long", seed=seed + 1, title=title)
    record.save(folder / "training.json")
    for hook in model.hooks:
        hook.remove()
    return model.to("cpu").unet


def sdxl(preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs") -> Path:
    """Trains VAE and U-Net and writes a folder that plain diffusers opens as `StableDiffusionXLPipeline`."""
    vit_folder = vit(preset, seed=seed, runs=runs)

    def build(folder: Path) -> None:
        from diffusers import DDIMScheduler, StableDiffusionXLPipeline

        text = load_text_encoders(vit_folder)
        scheduler = DDIMScheduler(**SCHEDULER)
        pictures, weights = training_scenes(preset, "broad", runs)
        autoencoder = train_vae(preset, seed, folder / "vae", pictures, weights)
        unet = train_unet(preset, seed, folder / "unet", pictures, weights, autoencoder, text, scheduler)
        tokenizer, first, second = text
        parts = {"vae": autoencoder, "unet": unet, "scheduler": scheduler, "tokenizer": tokenizer}
        parts |= {"tokenizer_2": tokenizer, "text_encoder": first, "text_encoder_2": second}
        whole = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=True, add_watermarker=False)
        whole.save_pretrained(folder)

    config = {
        "vae": asdict(preset.vae),
        "unet": preset.unet_kwargs,
        "training": {name: getattr(preset.training, name).recipe for name in ("vae", "sdxl")},
        "captions": CAPTIONS,
        "places": PLACES,
        "emphasis": EMPHASIS,
        "scenes": preset.data.train_scenes,
        "scheduler": SCHEDULER,
    }
    if longer := preset.training.sdxl_long:
        config |= {"training_long": longer.recipe, "captions_long": LONG_CAPTIONS, "snr_limit": SNR_LIMIT}
    about = {"preset": preset.name, "seed": seed, "config": config, "upstream": [vit_folder]}
    return ensure("sdxl", build, **about, retrain=retrain, runs=runs)
