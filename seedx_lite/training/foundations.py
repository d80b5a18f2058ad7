"""The text-to-image foundation: VAE and U-Net of SDXL type (in the paper: SDXL itself, downloaded).

The other foundation, the ViT with the text encoders, is in `vit.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seedx_lite.artifacts import PROGRESS, ensure, processes, project_path
from seedx_lite.data.drawn import EMPHASIS, Drawn, cell_owners, draw_scenes, scenes, thing_weights
from seedx_lite.data.pictures import to_sheet
from seedx_lite.models.autoencoder import encode_pictures, read_vae, to_tensor
from seedx_lite.models.detokenizer import noise_target, sdxl_time_ids
from seedx_lite.models.text import encode_text, load_text_encoders
from seedx_lite.pipelines.text_to_image import draw_captions
from seedx_lite.presets import Preset, TrainConfig
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
PILOT_STEPS = 1500


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


def training_scenes(
    preset: Preset, mix: str, runs: str | Path, count: int | None = None, split: str = "train"
) -> TrainingScenes:
    """Draws the first `count` scenes of a mix, or takes them from the cache in `runs`; None: those of a first phase, or
    all of a validation."""
    grid, size, latent = round(preset.vit.n_queries**0.5), preset.image_size, preset.unet.sample_size
    count = count or (preset.data.train_scenes if split == "train" else preset.data.validation_scenes)
    drawn = draw_scenes(split, count, mix, (size, size), grid, project_path(runs) / "cache")
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

    def batch_at(step: int, share: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(preset.data.train_scenes, (share,), generator=generator)
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

    Two lessons are given beside each cross-attention. Before them, pictures showed the right things in any place, or
    twice. A linear map reads from every query where its
    cell is: keys can be addressed to a place only if queries tell theirs. And from the cells of a thing, the first head
    should look at the last token of the words on that thing (as TokenCompose does, arXiv 2312.03626).
    """

    def __init__(self, unet: nn.Module, first: nn.Module, second: nn.Module):
        super().__init__()
        self.unet, self.first, self.second = unet, first, second.requires_grad_(False)
        layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
        self.readers = nn.ModuleList(nn.Linear(layer.to_q.out_features, 2) for layer in layers)
        self.layers = layers  # a plain list: they are the U-Net's
        # The queries [B, g·g, D] and keys [B, L, D] of the latest step stay with the projections that made them
        noting = [part for layer in layers for part in (layer.to_q, layer.to_k)]
        self.hooks = [projection.register_forward_hook(self._note) for projection in noting]

    @staticmethod
    def _note(projection: nn.Module, _inputs: tuple, output: Tensor) -> None:
        projection.latest = output

    def forget(self) -> None:
        """Takes the hooks and what they have noted away; then the U-Net is a plain one again."""
        for hook in self.hooks:
            hook.remove()
        for layer in self.layers:
            for projection in (layer.to_q, layer.to_k):
                if hasattr(projection, "latest"):
                    del projection.latest

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor, kept: Tensor, time_ids: Tensor) -> Tensor:
        """Prediction [B, 4, h, w]. kept [B]: 0 where the caption is dropped, to zeros, as the pipeline makes its
        unconditional input."""
        context, pooled = encode_text((self.first, self.second), tokens)
        extra = {"text_embeds": pooled * kept[:, None], "time_ids": time_ids.expand(len(noisy), -1)}
        return self.unet(noisy, times, context * kept[:, None, None], added_cond_kwargs=extra).sample

    def place_error(self) -> Tensor:
        """Mean squared error of the places read from the latest queries, in units of half a side."""
        errors = []
        for layer, reader in zip(self.layers, self.readers, strict=True):
            queries = layer.to_q.latest
            axis = torch.linspace(-1, 1, round(queries.shape[1] ** 0.5), device=queries.device)
            places = torch.cartesian_prod(axis, axis)  # [g·g, 2]: row, column
            errors.append((reader(queries).float() - places).square().mean())
        return torch.stack(errors).mean()

    def word_error(self, owners: Tensor, words: Tensor, kept: Tensor) -> Tensor:
        """Cross-entropy of the first heads' attention, over the tokens, from the cells of things.

        owners [B, G, G]: 1 + number of the thing in a cell, 0 for none; a coarser cell on two things counts for the one
        with the higher number. words [B, M]: for each thing the token to look
        at, -1 for none.
        """
        errors = []
        for layer in self.layers:
            queries, keys = layer.to_q.latest, layer.to_k.latest
            width = queries.shape[-1] // layer.heads  # of the first head
            side = round(queries.shape[1] ** 0.5)
            here = F.adaptive_max_pool2d(owners[:, None].float(), side).flatten(1).long()  # [B, g·g]
            wanted = torch.where((here > 0) & (kept[:, None] > 0), words.gather(1, (here - 1).clamp(min=0)), -1)
            scores = queries[..., :width].float() @ keys[..., :width].float().mT / width**0.5  # [B, g·g, L]
            lost = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction="sum")
            errors.append(lost / (wanted >= 0).sum().clamp(min=1))
        return torch.stack(errors).mean()


def train_unet(preset: Preset, seed: int, folder: Path, data: TrainingScenes, autoencoder, text, scheduler):
    """Trains the text-to-image U-Net on the broad mix; every tenth caption is dropped, for guidance.

    The first phase learns what things look like, the second (`training.sdxl_words`) whose words to follow; it sees more
    scenes, more people, and has the lesson on words. Descriptions with boxes among the captions teach to put things
    where it is told to. Things are emphasised. text: tokenizer and both encoders, of which the first is trained along.
    Latents are computed once. `folder` gets training.json and the checkpoints of both phases, and pictures of the way.
    """
    from diffusers import UNet2DConditionModel

    first, second = preset.training.sdxl, preset.training.sdxl_words
    taught, size = preset.text_to_image, preset.image_size
    captions = CaptionSource(text[0], "train", len(data.pictures), "broad", (size, size), taught.captions)
    owners = torch.from_numpy(cell_owners(data.drawn, captions.scenes)).unflatten(1, (data.grid, data.grid))
    people = (data.drawn.pose > 0).any(1)  # [K]
    chances = torch.from_numpy(np.where(people, taught.people, 1.0))
    latents = encode_pictures(autoencoder.to(processes().device), data.pictures)
    autoencoder.to("cpu")
    torch.manual_seed(seed)
    model = _TextToImage(UNet2DConditionModel(**preset.unet_kwargs), *text[1:])

    def batch_of(chosen: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
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

    def first_batch(step: int, share: int, generator: torch.Generator) -> dict[str, Tensor]:
        return batch_of(torch.randint(preset.data.train_scenes, (share,), generator=generator), generator)

    def second_batch(step: int, share: int, generator: torch.Generator) -> dict[str, Tensor]:
        return batch_of(torch.multinomial(chances, share, True, generator=generator), generator)

    def first_loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict]:
        latents, noise, times = batch["latents"], batch["noise"], batch["times"]
        noisy = scheduler.add_noise(latents, noise, times)
        predicted = model(noisy, times, batch["tokens"], batch["kept"], batch["time_ids"])
        errors = (predicted.float() - noise_target(scheduler, latents, noise, times)).square()
        places = model.place_error()
        loss = (errors * batch["weights"]).mean() + taught.places * places
        return loss, {"plain": errors.detach().mean(), "places": places}

    def second_loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict]:
        loss, logs = first_loss(model, batch, generator)
        words = model.word_error(batch["owners"], batch["words"], batch["kept"])
        return loss + taught.words * words, logs | {"words": words}

    def look(step: int) -> None:
        pipe = _pipeline(autoencoder, model.unet, text, scheduler).to(next(model.parameters()).device)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = draw_captions(pipe, [canonical_caption(scene) for scene in watched], quick=True)
        file = folder / PROGRESS.replace("*", str(step))
        to_sheet(pictures, columns=16).save(file, quality=90, subsampling=0)

    watched = scenes("validation", min(LOOK_SCENES, preset.data.validation_scenes), "narrow", (size, size))
    title = "text-to-image U-Net"
    record = train(model, first_batch, first_loss, first, folder, seed=seed, title=title, visits=_visits(first, look))
    if second:
        record.save(folder / "things" / "training.json")
        visits, title = _visits(second, lambda step: look(first.steps + step)), f"{title}, words"
        below = folder / "words"
        record = train(model, second_batch, second_loss, second, below, seed=seed + 1, title=title, visits=visits)
    record.save(folder / "training.json")
    model.forget()
    return model.to("cpu").unet


def _visits(config: TrainConfig, look: Callable[[int], None]) -> dict[int, Callable[[], None]]:
    """`LOOKS` visits to a training, each after twice as many steps."""
    return {step: partial(look, step) for step in (config.steps // 2**halvings for halvings in range(LOOKS))}


def _pipeline(autoencoder, unet, text, scheduler):
    """text: tokenizer and both encoders."""
    from diffusers import StableDiffusionXLPipeline

    tokenizer, first, second = text
    parts = {"vae": autoencoder, "unet": unet, "scheduler": scheduler, "tokenizer": tokenizer}
    parts |= {"tokenizer_2": tokenizer, "text_encoder": first, "text_encoder_2": second}
    pipe = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=True, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl(preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs") -> Path:
    """Trains VAE and U-Net and writes a folder that plain diffusers opens as `StableDiffusionXLPipeline`."""
    vit_folder = vit(preset, seed=seed, runs=runs)

    def build(folder: Path) -> None:
        from diffusers import DDIMScheduler

        text = load_text_encoders(vit_folder)
        scheduler = DDIMScheduler(**noise_schedule(preset))
        data = training_scenes(preset, "broad", runs, second and preset.data.second)
        autoencoder = train_vae(preset, seed, folder / "vae", data)
        unet = train_unet(preset, seed, folder / "unet", data, autoencoder, text, scheduler)
        _pipeline(autoencoder, unet, text, scheduler).save_pretrained(folder)

    taught, second = preset.text_to_image, preset.training.sdxl_words
    config = {
        "vae": asdict(preset.vae),
        "unet": preset.unet_kwargs,
        "training": {name: getattr(preset.training, name).recipe for name in ("vae", "sdxl")},
        **_first_phase(preset),
    }
    if second:
        config["training"]["sdxl_words"] = second.recipe
        config |= {"words": taught.words, "people": taught.people, "second_scenes": preset.data.second}
    about = {"preset": preset.name, "seed": seed, "config": config, "upstream": [vit_folder]}
    return ensure("sdxl", build, **about, retrain=retrain, runs=runs)


def _first_phase(preset: Preset) -> dict[str, Any]:
    """What decides a first phase of the U-Net beside its training, for the recipes of artifacts."""
    taught = preset.text_to_image
    return {
        "captions": taught.captions,
        "places": taught.places,
        "emphasis": EMPHASIS,
        "scenes": preset.data.train_scenes,
        "scheduler": noise_schedule(preset),
    }


def pilot(
    preset: Preset, prediction_type: str, folders: Mapping[str, Path], seed: int = 0, runs: str | Path = "runs"
) -> Path:
    """A folder as of `sdxl`, with a U-Net after a short first phase (`PILOT_STEPS` at most), in which it learned to
    predict the noise ("epsilon") or v ("v_prediction"). folders: `sdxl` gives the VAE, `vit` the text encoders."""
    from diffusers import DDIMScheduler

    short = replace(preset.training.sdxl, steps=min(PILOT_STEPS, preset.training.sdxl.steps), ema_decay=0.995)
    training = replace(preset.training, sdxl=short, sdxl_words=None)
    taught = replace(preset.text_to_image, prediction_type=prediction_type)
    preset = replace(preset, training=training, text_to_image=taught)

    def build(folder: Path) -> None:
        autoencoder = read_vae(folders["sdxl"])
        text, scheduler = load_text_encoders(folders["vit"]), DDIMScheduler(**noise_schedule(preset))
        data = training_scenes(preset, "broad", runs)
        unet = train_unet(preset, seed, folder / "unet", data, autoencoder, text, scheduler)
        _pipeline(autoencoder, unet, text, scheduler).save_pretrained(folder)

    config = {"training": short.recipe, **_first_phase(preset)}
    about = {"preset": preset.name, "seed": seed, "config": config, "upstream": [folders["vit"], folders["sdxl"]]}
    return ensure(f"pilot-{prediction_type}", build, **about, runs=runs)
