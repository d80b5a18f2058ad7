"""The text-to-image foundation: VAE and U-Net of SDXL type (in the paper: SDXL itself, downloaded).

The other foundation, the ViT with the text encoders, is in `vit.py`.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from seedx_lite.artifacts import PROGRESS, ensure, processes, project_path
from seedx_lite.data.drawn import EMPHASIS, Drawn, cell_owners, draw_scenes, scenes, thing_weights
from seedx_lite.models.autoencoder import encode_pictures, to_tensor
from seedx_lite.models.detokenizer import noise_target, sdxl_time_ids
from seedx_lite.models.text import encode_text, load_text_encoders
from seedx_lite.presets import Preset
from seedx_lite.world.language import canonical_caption
from .loop import train
from .text import CaptionSource
from .vit import vit

SCHEDULER = {  # SDXL's noise schedule
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    "clip_sample": False,
    "set_alpha_to_one": True,
}
LOOKS, LOOK_SCENES = 6, 64  # looks at the training, each after twice as many steps; captions at each


def noise_schedule(preset: Preset) -> dict[str, Any]:
    """Arguments of the scheduler, with what the U-Net predicts: the noise, or v = α·noise - σ·picture."""
    return SCHEDULER | {"prediction_type": preset.text_to_image.prediction_type}


class TrainingScenes(NamedTuple):
    """All training scenes of a preset, drawn on a grid of cells, and how much each place of a latent counts in a loss:
    [K, 1, h, w], with the mean 1, things more than background."""

    drawn: Drawn
    grid: int
    weights: Tensor

    @property
    def pictures(self) -> np.ndarray:
        """uint8 [K, H, W, 3]"""
        return self.drawn.pictures


def training_scenes(preset: Preset, mix: str, runs: str | Path) -> TrainingScenes:
    """Draws the training scenes of a mix, or takes them from the cache in `runs`."""
    grid, size, latent = round(preset.vit.n_queries**0.5), preset.image_size, preset.unet.sample_size
    drawn = draw_scenes("train", preset.data.train_scenes, mix, (size, size), grid, project_path(runs) / "cache")
    weights = thing_weights(torch.tensor(drawn.kind).float()).unflatten(1, (1, grid, grid))
    return TrainingScenes(drawn, grid, F.adaptive_avg_pool2d(weights, latent))


def train_vae(preset: Preset, seed: int, folder: Path, data: TrainingScenes):
    """Trains `AutoencoderKL` on full frames; `folder` gets training.json and the checkpoint.

    Loss: absolute error, that of horizontal and vertical differences (edges), both with things emphasised, and a faint
    pull of the latents to a unit Gaussian. The scaling factor makes the latents' deviation 1.
    """
    from diffusers import AutoencoderKL

    config = preset.training.vae
    torch.manual_seed(seed)
    model = AutoencoderKL(**preset.vae.kwargs, sample_size=preset.image_size)

    def batch_at(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(data.pictures), (config.batch_size,), generator=generator)
        return to_tensor(data.pictures[chosen.numpy()]), data.weights[chosen]

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
    deviation = float(encode_pictures(model, data.pictures[:512]).std()) / model.config.scaling_factor
    model.register_to_config(scaling_factor=round(1 / deviation, 5))
    return model


class _TextToImage(nn.Module):
    """U-Net and text encoders. The first encoder goes on learning here, the second stays with the ViT.

    Two lessons are given beside each cross-attention; the loss of the noise alone would teach them much later, and
    without them pictures show the right things in any place, or twice. A linear map reads from every query where its
    cell is: keys can be addressed to a place only if queries tell theirs. And from the cells of a thing, the first head
    should look at the last token of the words on that thing (as TokenCompose does, arXiv 2312.03626).
    """

    def __init__(self, unet: nn.Module, first: nn.Module, second: nn.Module):
        super().__init__()
        self.unet, self.first, self.second = unet, first, second.requires_grad_(False)
        layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
        self.readers = nn.ModuleList(nn.Linear(layer.to_q.out_features, 2) for layer in layers)
        self.widths = [layer.to_q.out_features // layer.heads for layer in layers]  # of the first head
        # Of the latest step, by layer, in the order of the readers: queries [B, g·g, D] and keys [B, L, D]
        self._queries, self._keys = [torch.empty(0)] * len(layers), [torch.empty(0)] * len(layers)
        self.hooks = []
        for number, layer in enumerate(layers):
            for projection, seen in ((layer.to_q, self._queries), (layer.to_k, self._keys)):
                hook = partial(self._note, seen, number)
                self.hooks.append(projection.register_forward_hook(hook))

    @staticmethod
    def _note(seen: list[Tensor], number: int, _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        seen[number] = output

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor, kept: Tensor, time_ids: Tensor) -> Tensor:
        """Prediction [B, 4, h, w]. kept [B]: 0 where the caption is dropped, to zeros, as the pipeline makes its
        unconditional input."""
        context, pooled = encode_text((self.first, self.second), tokens)
        extra = {"text_embeds": pooled * kept[:, None], "time_ids": time_ids.expand(len(noisy), -1)}
        return self.unet(noisy, times, context * kept[:, None, None], added_cond_kwargs=extra).sample

    def place_error(self) -> Tensor:
        """Mean squared error of the places read from the latest queries, in units of half a side."""
        errors = []
        for queries, reader in zip(self._queries, self.readers, strict=True):
            axis = torch.linspace(-1, 1, round(queries.shape[1] ** 0.5), device=queries.device)
            places = torch.cartesian_prod(axis, axis)  # [g·g, 2]: row, column
            errors.append((reader(queries).float() - places).square().mean())
        return torch.stack(errors).mean()

    def word_error(self, owners: Tensor, words: Tensor, kept: Tensor) -> Tensor:
        """Cross-entropy of the first heads' attention, over the tokens, from the cells of things.

        owners [B, G, G]: 1 + number of the thing in a cell, 0 for none. words [B, M]: for each thing the token to look
        at, -1 for none.
        """
        errors = []
        for queries, keys, width in zip(self._queries, self._keys, self.widths, strict=True):
            side = round(queries.shape[1] ** 0.5)
            here = F.adaptive_max_pool2d(owners[:, None].float(), side).flatten(1).long()  # [B, g·g]
            wanted = torch.where((here > 0) & (kept[:, None] > 0), words.gather(1, (here - 1).clamp(min=0)), -1)
            scores = queries[..., :width].float() @ keys[..., :width].float().mT / width**0.5  # [B, g·g, L]
            lost = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction="sum")
            errors.append(lost / (wanted >= 0).sum().clamp(min=1))
        return torch.stack(errors).mean()


def train_unet(preset: Preset, seed: int, folder: Path, data: TrainingScenes, autoencoder, text, scheduler):
    """Trains the text-to-image U-Net on the broad mix; every tenth caption is dropped, for guidance.

    Descriptions with boxes among the captions teach it to put things where it is told to. Things are emphasised.
    text: tokenizer and both encoders, of which the first is trained along. Latents are computed once. `folder` gets
    training.json and the checkpoint.
    """
    from diffusers import UNet2DConditionModel

    config, taught, size = preset.training.sdxl, preset.text_to_image, preset.image_size
    captions = CaptionSource(text[0], "train", len(data.pictures), "broad", (size, size), taught.captions)
    owners = torch.from_numpy(cell_owners(data.drawn, captions.scenes)).unflatten(1, (data.grid, data.grid))
    people = (data.drawn.pose > 0).any(1)  # [K]
    chances = torch.from_numpy(np.where(people, taught.people, 1.0))
    latents = encode_pictures(autoencoder.to(processes().device), data.pictures)
    autoencoder.to("cpu")
    torch.manual_seed(seed)
    model = _TextToImage(UNet2DConditionModel(**preset.unet_kwargs), *text[1:])

    def batch_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        if taught.people == 1:
            chosen = torch.randint(len(latents), (config.batch_size,), generator=generator)
        else:
            chosen = torch.multinomial(chances, config.batch_size, replacement=True, generator=generator)
        tokens, words = captions.marked_tokens(chosen.tolist(), generator)
        return {
            "latents": latents[chosen],
            "weights": data.weights[chosen],
            "owners": owners[chosen],
            "tokens": tokens,
            "words": words,
            "kept": (torch.rand(len(chosen), generator=generator) >= 0.1).float(),
            "noise": torch.randn(len(chosen), *latents.shape[1:], generator=generator),
            "times": torch.randint(scheduler.config.num_train_timesteps, (len(chosen),), generator=generator),
            "time_ids": sdxl_time_ids(size),
        }

    def loss_of(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict]:
        latents, noise, times = batch["latents"], batch["noise"], batch["times"]
        noisy = scheduler.add_noise(latents, noise, times)
        predicted = model(noisy, times, batch["tokens"], batch["kept"], batch["time_ids"])
        errors = (predicted.float() - noise_target(scheduler, latents, noise, times)).square()
        places = model.place_error()
        loss = (errors * batch["weights"]).mean() + taught.places * places
        logs = {"plain": errors.detach().mean(), "places": places}
        if taught.words:
            words = model.word_error(batch["owners"], batch["words"], batch["kept"])
            loss, logs = loss + taught.words * words, logs | {"words": words}
        return loss, logs

    def look(step: int) -> None:
        parts = {"vae": autoencoder, "unet": model.unet, "text_encoder": model.first, "text_encoder_2": model.second}
        parts |= {"tokenizer": text[0], "tokenizer_2": text[0], "scheduler": scheduler}
        pipe = _pipeline(parts).to(next(model.parameters()).device)
        folder.mkdir(parents=True, exist_ok=True)
        draw_progress(pipe, preset).save(folder / PROGRESS.replace("*", str(step)))

    visits = {config.steps // 2**halvings: partial(look, config.steps // 2**halvings) for halvings in range(LOOKS)}
    title = "text-to-image U-Net"
    record = train(model, batch_at, loss_of, config, folder, seed=seed, title=title, visits=visits)
    record.save(folder / "training.json")
    for hook in model.hooks:
        hook.remove()
    return model.to("cpu").unet


def _pipeline(parts: dict[str, Any]):
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=True, add_watermarker=False)


def draw_progress(pipe, preset: Preset, count: int = LOOK_SCENES, columns: int = 16) -> Image.Image:
    """Pictures of the captions of the first validation scenes, side by side in rows: how far the training has come.

    Each has its own noise, the same at every time.
    """
    pipe.set_progress_bar_config(disable=True)
    size, pictures = preset.image_size, []
    wanted = scenes("validation", min(count, preset.data.validation_scenes), "narrow", (size, size))
    for start in range(0, len(wanted), columns):
        captions = [canonical_caption(scene) for scene in wanted[start : start + columns]]
        noise = [torch.Generator().manual_seed(start + number) for number in range(len(captions))]
        pictures += pipe(
            captions, height=size, width=size, num_inference_steps=25, guidance_scale=3.0, generator=noise
        ).images
    sheet = Image.new("RGB", (columns * size, -(-len(pictures) // columns) * size))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * size, number // columns * size))
    return sheet


def sdxl(preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs") -> Path:
    """Trains VAE and U-Net and writes a folder that plain diffusers opens as `StableDiffusionXLPipeline`."""
    vit_folder = vit(preset, seed=seed, runs=runs)

    def build(folder: Path) -> None:
        from diffusers import DDIMScheduler

        text = load_text_encoders(vit_folder)
        scheduler = DDIMScheduler(**noise_schedule(preset))
        data = training_scenes(preset, "broad", runs)
        autoencoder = train_vae(preset, seed, folder / "vae", data)
        unet = train_unet(preset, seed, folder / "unet", data, autoencoder, text, scheduler)
        tokenizer, first, second = text
        parts = {"vae": autoencoder, "unet": unet, "scheduler": scheduler, "tokenizer": tokenizer}
        parts |= {"tokenizer_2": tokenizer, "text_encoder": first, "text_encoder_2": second}
        _pipeline(parts).save_pretrained(folder)

    taught = preset.text_to_image
    config = {
        "vae": asdict(preset.vae),
        "unet": preset.unet_kwargs,
        "training": {name: getattr(preset.training, name).recipe for name in ("vae", "sdxl")},
        "captions": taught.captions,
        "places": taught.places,
        "emphasis": EMPHASIS,
        "scenes": preset.data.train_scenes,
        "scheduler": noise_schedule(preset),
    }
    config |= {"words": taught.words} if taught.words else {}
    config |= {"people": taught.people} if taught.people != 1 else {}
    about = {"preset": preset.name, "seed": seed, "config": config, "upstream": [vit_folder]}
    return ensure("sdxl", build, **about, retrain=retrain, runs=runs)
