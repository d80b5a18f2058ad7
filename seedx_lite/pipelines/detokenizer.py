"""The de-tokenizer as a diffusers pipeline (paper §3.1): pictures or visual embeddings in, pictures out.

Axes: B pictures, T tokens of the vision encoder, N pooled visual embeddings, D their channels, h, w latent height and
width.
"""

import inspect
import json
import math
from pathlib import Path
from typing import Any, Self

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Generator, Tensor

from seedx_lite.artifacts import check_upstream
from seedx_lite.data.pictures import upright_rgb
from seedx_lite.models.autoencoder import read_vae, to_tensor
from seedx_lite.models.detokenizer import (
    Conditioning,
    SDXLAdapterWithLatentImage,
    condition,
    read_adapter,
    sdxl_time_ids,
)
from seedx_lite.models.resamplers import ResamplerXLV2
from seedx_lite.models.vit import VisionTransformerWithAttnPool
from seedx_lite.models.weights import SavedModule


class DetokenizerPipeline(DiffusionPipeline):
    """Decodes visual embeddings; fed with a picture, it draws what the vision encoder has kept of it.

    Args:
        vit: the vision encoder.
        vae, unet, scheduler: of an SDXL-type pipeline; the U-Net's keys and values belong to the resampler.
        resampler: visual embeddings to what the U-Net reads.
        vit_down: run of consecutive vision tokens averaged to one embedding, N = T / vit_down.
        official: pictures skip that average, as in the released code (see `SDXLAdapter`).
    """

    def __init__(
        self,
        vit: VisionTransformerWithAttnPool,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        resampler: ResamplerXLV2,
        scheduler: SchedulerMixin,
        vit_down: int = 4,
        official: bool = False,
    ) -> None:
        super().__init__()
        channels = vae.config.latent_channels
        if unet.config.in_channels not in (channels, 2 * channels):
            raise ValueError(
                f"the U-Net reads {unet.config.in_channels} channels, the VAE has {channels}: {channels} expected, or "
                f"{2 * channels} for a U-Net of the second stage"
            )
        self.register_modules(vit=vit, vae=vae, unet=unet, resampler=resampler, scheduler=scheduler)
        self.register_to_config(vit_down=vit_down, official=official)

    @classmethod
    def from_artifacts(cls, vit: str | Path, sdxl: str | Path, adapter: str | Path) -> Self:
        """From the folders of the three stages, `adapter` being trained on `sdxl`, an SDXL-type pipeline.

        Raises FileNotFoundError or ValueError that names the file, the keys and what to do, also where the three were
        not trained one upon the other.
        """
        check_upstream(adapter, vit, sdxl)
        trained = read_adapter(adapter, sdxl)
        return cls(
            VisionTransformerWithAttnPool.from_pretrained(vit),
            read_vae(sdxl),
            trained.unet,
            trained.resampler,
            _read_scheduler(Path(sdxl)),
            vit_down=trained.config["vit_down"],
            official=trained.config["official"],
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write all parts to `save_directory`, one folder each; `kwargs` go to those of diffusers."""
        folder = Path(save_directory)
        for name, part in self.components.items():
            part.save_pretrained(folder / name, **({} if isinstance(part, SavedModule) else kwargs))
        self.save_config(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Read a folder of `save_pretrained`. Raises FileNotFoundError or ValueError that names the file."""
        folder = Path(folder)
        index = folder / cls.config_name
        if not index.is_file():
            raise FileNotFoundError(f"{index} is missing; give a folder that {cls.__name__}.save_pretrained wrote")
        try:
            settings = json.loads(index.read_text())
            if settings["_class_name"] != cls.__name__:
                raise ValueError(f"of a {settings['_class_name']}, expected {cls.__name__}")
            own = {name: settings[name] for name in ("vit_down", "official")}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{index}: {error!r}; give a folder that {cls.__name__}.save_pretrained wrote") from error
        return cls(
            VisionTransformerWithAttnPool.from_pretrained(folder / "vit").to(dtype),
            read_vae(folder, dtype),
            UNet2DConditionModel.from_pretrained(folder, subfolder="unet", dtype=dtype),
            ResamplerXLV2.from_pretrained(folder / "resampler").to(dtype),
            _read_scheduler(folder),
            **own,
        )

    @property
    def takes_condition(self) -> bool:
        """Whether the U-Net is one of the second stage, that also sees a condition image."""
        return self.unet.config.in_channels != self.vae.config.latent_channels

    @property
    def image_size(self) -> int:
        """Side of the pictures that come out, in px."""
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        return (self.vae.config.latent_channels, *[self.unet.config.sample_size] * 2)

    @property
    def time_ids(self) -> Tensor:
        """SDXL's size conditioning of a whole picture, [1, 6]."""
        return sdxl_time_ids(self.image_size).to(self.device, self.dtype)

    @torch.no_grad()
    def __call__(
        self,
        images_or_embeddings: Image.Image | list[Image.Image] | Tensor,
        num_inference_steps: int = 25,
        guidance_scale: float = 2.0,
        generator: Generator | list[Generator] | None = None,
        output_type: str = "pil",
        batch_size: int = 32,
        return_dict: bool = True,
        condition_images: Image.Image | list[Image.Image | None] | None = None,
        image_guidance_scale: float = 1.0,
        condition_strength: float = 1.0,
    ) -> ImagePipelineOutput | tuple:
        """Draw one picture for each that is given.

        The noise is drawn picture by picture, on the generator's device (without one, the CPU): a result depends
        neither on the rest of its batch nor on the pipeline's device.

        Args:
            images_or_embeddings: a picture, or a list of them, of any size and mode; or visual embeddings, pooled
                [B, N, D] or as they leave the vision encoder [B, T, D].
            num_inference_steps: steps of the scheduler.
            guidance_scale: how far to go from what the zero picture predicts to what the embeddings predict; more
                than 1 exaggerates. At 1 or below, the zero picture is not asked at all.
            generator: one for all pictures in turn, or (best, with a scheduler that adds noise) one for each.
            output_type: "pil"; "np" [B, H, W, 3] or "pt" [B, 3, H, W] in 0..1; "latent" [B, 4, h, w].
            batch_size: pictures drawn at once; it changes memory and speed only.
            return_dict: False returns a tuple.
            condition_images: for a U-Net of the second stage, pictures whose fine detail should be kept: RGB, as large
                as what comes out; None for none, also in the list.
            image_guidance_scale: how far to go from what neither embeddings nor condition image predict to what the
                condition image alone does; 1 leaves the third prediction out that more would cost.
            condition_strength: what the latents of the condition images are multiplied with, from 0 (none) to 1.

        Raises TypeError or ValueError that says what was given, what is expected and what to do.
        """
        for name, value in (("num_inference_steps", num_inference_steps), ("batch_size", batch_size)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number, 1 or more")
        for name, value in (("guidance_scale", guidance_scale), ("image_guidance_scale", image_guidance_scale)):
            if not math.isfinite(value):
                raise ValueError(f"{name}={value}: expected a number")
        if not self.takes_condition and (image_guidance_scale, condition_strength) != (1, 1):
            told = "image_guidance_scale and condition_strength are for a U-Net of the second stage; leave them out"
            raise ValueError(f"this U-Net takes no condition image: {told}")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type={output_type!r}: expected one of pil, np, pt, latent")
        if not 0 <= condition_strength <= 1:
            raise ValueError(f"condition_strength={condition_strength}: expected 0 to 1")
        given = self._checked(images_or_embeddings)
        seen = self._condition_latents(condition_images, len(given), condition_strength)
        generators = generator if isinstance(generator, list) else [generator] * len(given)
        if len(generators) != len(given):
            raise ValueError(f"{len(generators)} generators for {len(given)} pictures; give one for each, or just one")
        shape = self._latent_shape
        noise = [torch.randn(shape, generator=g, device=g.device if g else "cpu").cpu() for g in generators]

        zero = self.vit.zero_embeddings()  # [1, T, D]
        parts, drawn = [slice(start, start + batch_size) for start in range(0, len(given), batch_size)], []
        with self.progress_bar(total=len(parts) * num_inference_steps) as bar:
            for part in parts:
                latents = torch.stack(noise[part]).to(self.device, self.dtype)
                self.scheduler.set_timesteps(num_inference_steps, device=self.device)
                conditioning = self._condition(given[part], zero)
                condition = None if seen is None else seen[part]
                guidance = (guidance_scale, image_guidance_scale)
                latents = self._denoise(latents, conditioning, condition, guidance, generators[part], bar)
                if output_type != "latent":
                    latents = self.vae.decode(latents / self.vae.config.scaling_factor).sample
                drawn.append(latents)
        images = VaeImageProcessor().postprocess(torch.cat(drawn), output_type=output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _checked(self, given: Any) -> list[Image.Image] | Tensor:
        """The input as a list of pictures or as embeddings [B, N or T, D]."""
        given = [given] if isinstance(given, Image.Image) else given
        if isinstance(given, list) and all(isinstance(item, Image.Image) for item in given):
            if not given:
                raise ValueError("an empty list of pictures; give at least one")
            return list(map(upright_rgb, given))
        if not isinstance(given, Tensor):
            kinds = {type(item).__name__ for item in given} if isinstance(given, list) else {type(given).__name__}
            raise TypeError(f"got {sorted(kinds)}, expected a PIL picture, a list of them, or a tensor of embeddings")
        tokens, width = self.vit.config["n_queries"], self.vit.config["output_dim"]
        pooled = tokens // self.config.vit_down
        if given.ndim != 3 or not len(given) or given.shape[1] not in (pooled, tokens) or given.shape[2] != width:
            raise ValueError(
                f"embeddings of shape {list(given.shape)}; this de-tokenizer reads [B, {pooled}, {width}] (pooled) or "
                f"[B, {tokens}, {width}] (unpooled), B at least 1, from the vision encoder it was trained with"
            )
        return given

    def _condition(self, given: list[Image.Image] | Tensor, zero: Tensor) -> Conditioning:
        """What the U-Net reads for a batch; `zero` [1, T, D] are the embeddings of the zero picture."""
        if not isinstance(given, Tensor):
            given = self.vit(self.vit.preprocess(given).to(zero.dtype))  # [B, T, D]
        name = "image_tokens" if given.shape[1] == zero.shape[1] else "image_embeds"
        zero, tokens = (tensor.to(self.device, self.dtype) for tensor in (zero, given))
        settings = {"vit_down": self.config.vit_down, "official": self.config.official}
        return condition(self.resampler, zero, **{name: tokens}, **settings)

    def _condition_latents(self, images: Any, count: int, strength: float) -> Tensor | None:
        """Latents [B, 4, h, w] of condition images, zeros for none; None if the U-Net does not look at any."""
        if not self.takes_condition:
            if images is not None:
                raise ValueError("this U-Net is one of the first stage: it takes no condition_images; leave them out")
            return None
        images = images if isinstance(images, list) else [images] * count
        if len(images) != count:
            raise ValueError(f"{len(images)} condition images for {count} pictures; give one, or None, for each")
        side, latents = self.image_size, torch.zeros(count, *self._latent_shape)
        for number, image in enumerate(images):
            if image is None:
                continue
            if not isinstance(image, Image.Image):
                raise TypeError(f"condition image {number} is a {type(image).__name__}, expected a PIL picture or None")
            if image.size != (side, side) or image.mode != "RGB":
                is_ = f"{image.width}x{image.height} px, {image.mode}"
                raise ValueError(f"condition image {number} is {is_}; expected {side}x{side} px, RGB: resize, convert")
        there = [number for number, image in enumerate(images) if image is not None]
        for start in range(0, len(there), 64):
            part = there[start : start + 64]
            pixels = to_tensor(np.stack([np.asarray(images[number]) for number in part]))
            pixels = pixels.to(self.device, self.dtype)
            latents[part] = SDXLAdapterWithLatentImage.condition_latents(self.vae, pixels).float().cpu()
        return strength * latents

    def _denoise(
        self,
        latents: Tensor,
        conditioning: Conditioning,
        condition: Tensor | None,
        guidance: tuple[float, float],
        generators: list[Generator | None],
        bar: Any,
    ) -> Tensor:
        """Noise [B, 4, h, w] → latents of pictures, along the timesteps that the scheduler is set to.

        condition: latents [B, 4, h, w] of condition images. guidance: by the embeddings, and by the condition image.
        Official: three predictions, with both, with the condition image alone and with neither; where the last counts
        for nothing, it is not asked for.
        """
        scale, image_scale = guidance
        both = condition is not None and image_scale != 1
        scale = max(scale, 1.0)
        passes = 3 if both else 2 if scale > 1 else 1  # nothing, condition image alone, all
        context, negative_context, pooled, negative_pooled = conditioning
        context = torch.cat([*[negative_context] * (passes - 1), context])
        pooled = torch.cat([*[negative_pooled] * (passes - 1), pooled])
        time_ids = self.time_ids.expand(len(pooled), -1)
        if condition is not None:
            condition = condition.to(latents)
            condition = torch.cat([torch.zeros_like(condition)] * both + [condition] * (passes - both))
        stochastic = "generator" in inspect.signature(self.scheduler.step).parameters  # may add noise on its way
        draws = {"generator": generators} if stochastic and generators[0] else {}
        latents = latents * self.scheduler.init_noise_sigma
        added = {"text_embeds": pooled, "time_ids": time_ids}
        for time in self.scheduler.timesteps:
            noisy = self.scheduler.scale_model_input(torch.cat([latents] * passes), time)  # [B to 3B, 4, h, w]
            noisy = noisy if condition is None else torch.cat([noisy, condition], dim=1)  # [B to 3B, 8, h, w]
            *without, predicted = self.unet(noisy, time, context, added_cond_kwargs=added).sample.chunk(passes)
            if without:
                predicted = without[-1] + scale * (predicted - without[-1])
            if both:
                predicted = predicted + (image_scale - 1) * (without[1] - without[0])
            latents = self.scheduler.step(predicted, time, latents, **draws).prev_sample
            bar.update()
        return latents


def _read_scheduler(folder: Path) -> SchedulerMixin:
    """The scheduler of a pipeline's folder, of the class that its configuration names."""
    file = folder / "scheduler" / "scheduler_config.json"
    try:
        name = json.loads(file.read_text())["_class_name"]
        return getattr(diffusers, name).from_pretrained(folder, subfolder="scheduler")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is missing or damaged ({error!r}); give the folder of a whole pipeline") from error
