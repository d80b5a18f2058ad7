"""The de-tokenizer (paper §3.1): an SDXL U-Net that reads visual embeddings in place of its text encoders.

Axes: B batch, T tokens of the vision encoder, N pooled visual embeddings, K their channels, Q resampler
queries, C channels of the cross-attention, P of the pooled embedding, h, w latent height and width.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from torch import Tensor, nn

from .resamplers import ResamplerXLV2
from .vit import pool_embeddings
from .weights import build, load_tensors, read_folder, save_folder, saved_class


class Conditioning(NamedTuple):
    """What the U-Net reads, with and without the picture (the latter for guidance)."""

    prompt_embeds: Tensor  # [B, Q, C]
    negative_prompt_embeds: Tensor  # [B, Q, C]
    pooled: Tensor  # [B, P]
    negative_pooled: Tensor  # [B, P]


class SDXLAdapter(nn.Module):
    """U-Net and resampler, trained to decode visual embeddings.

    Official `src/models/detokenizer/adapter_modules.py`, same parameter names (`unet.…`, `resampler.…`).

    Args:
        unet: of SDXL type; its cross-attention width is output1_dim + output2_dim of the resampler.
        full_ft: train everything, not just the resampler and each `to_k`, `to_v` (self- and cross-attention).
        vit_down: run of consecutive vision tokens averaged to one embedding: N = T / vit_down.
        official: as in the released code, keys and values stay frozen, and pictures are not pooled for inference.
    """

    always_trained: tuple[str, ...] = ("resampler.",)  # prefixes that are trained whatever `full_ft` is

    def __init__(
        self, unet: UNet2DConditionModel, resampler: ResamplerXLV2, full_ft=False, vit_down=4, official=False
    ) -> None:
        super().__init__()
        self.unet, self.resampler = unet, resampler
        self.config = {"full_ft": full_ft, "vit_down": vit_down, "official": official}
        for name, parameter in self.named_parameters():
            key_or_value = name.split(".")[-2] in ("to_k", "to_v") and not official
            parameter.requires_grad_(full_ft or key_or_value or name.startswith(self.always_trained))

    def trained_names(self) -> list[str]:
        """Names of the parameters that are trained, sorted."""
        return sorted(name for name, parameter in self.named_parameters() if parameter.requires_grad)

    def forward(self, noisy: Tensor, timesteps: Tensor, image_embeds: Tensor, time_ids: Tensor) -> Tensor:
        """What the U-Net predicts, [B, 4, h, w], for noisy latents [B, 4, h, w] (with condition image [B, 8, h, w]) at
        `timesteps` [B] or scalar, int64, given `image_embeds` [B, N, K].

        time_ids: [B, 6]: original height, width, crop top, left, target height, width, in pixels.
        """
        prompt_embeds, pooled = self.resampler(image_embeds)  # [B, Q, C], [B, P]
        conditions = {"text_embeds": pooled, "time_ids": time_ids}
        return self.unet(noisy, timesteps, prompt_embeds, added_cond_kwargs=conditions).sample

    def get_image_embeds(
        self, zero_tokens: Tensor, image_embeds: Tensor | None = None, image_tokens: Tensor | None = None
    ) -> Conditioning:
        """`condition` with this resampler and these settings."""
        settings = {name: self.config[name] for name in ("vit_down", "official")}
        return condition(self.resampler, zero_tokens, image_embeds, image_tokens, **settings)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the trained parameters, under their official names, and the sizes of the resampler."""
        state, config = self.state_dict(), {**self.config, "resampler": self.resampler.config}
        tensors = {name: state[name] for name in self.trained_names()}
        save_folder(Path(folder), type(self).__name__, config, tensors, dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path, sdxl: str | Path | UNet2DConditionModel) -> Self:
        """Read a folder of `save_pretrained` onto `sdxl`, the folder of the SDXL-type pipeline it was trained from, or
        its U-Net, which is changed in place: float32, eval mode. Raises FileNotFoundError or ValueError that names the
        file, the keys and what to do."""
        folder = Path(folder)
        config, tensors = read_folder(folder, cls.__name__)
        if not isinstance(sdxl, UNet2DConditionModel):
            base = Path(sdxl, "unet", "config.json")
            if not base.is_file():
                raise FileNotFoundError(f"{base} is missing; give the folder of an SDXL-type pipeline, or train one")
            sdxl = UNet2DConditionModel.from_pretrained(sdxl, subfolder="unet", dtype=torch.float32)
        resampler = build(ResamplerXLV2, config.pop("resampler", {}), folder)
        adapter = build(partial(cls, sdxl, resampler), config, folder)
        load_tensors(adapter, tensors, folder, required=adapter.trained_names())
        return adapter.eval()


class SDXLAdapterWithLatentImage(SDXLAdapter):
    """`SDXLAdapter` that also sees a condition image: its latents, zeros for none, follow the noisy ones, 8 channels in
    all. After the first stage: `SDXLAdapterWithLatentImage(first.unet, first.resampler, full_ft=True)`."""

    always_trained = ("resampler.", "unet.conv_in.")

    def __init__(self, unet: UNet2DConditionModel, resampler: ResamplerXLV2, *args, **kwargs) -> None:
        if unet.conv_in.in_channels == unet.config.out_channels:
            widen_conv_in(unet)
        super().__init__(unet, resampler, *args, **kwargs)

    @staticmethod
    def condition_latents(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
        """Condition images [B, 3, H, W] in −1..1 → [B, 4, h, w]: the mode, NOT times the scaling factor, though the
        noisy latents are; the released weights expect this difference."""
        return vae.encode(pixels).latent_dist.mode()


def read_adapter(folder: str | Path, sdxl: str | Path | UNet2DConditionModel) -> SDXLAdapter:
    """`from_pretrained` of the class that the folder's configuration names: of the first stage or of the second."""
    known = {cls.__name__: cls for cls in (SDXLAdapter, SDXLAdapterWithLatentImage)}
    return known.get(saved_class(Path(folder)), SDXLAdapter).from_pretrained(folder, sdxl)


def condition(
    resampler: ResamplerXLV2,
    zero_tokens: Tensor,
    image_embeds: Tensor | None = None,
    image_tokens: Tensor | None = None,
    vit_down: int = 4,
    official: bool = False,
) -> Conditioning:
    """Conditioning and its negative, from pooled embeddings [B, N, K] (of the language model or a cache) or from the
    vision encoder's tokens [B, T, K]; `zero_tokens` [1, T, K] are those of the zero picture, unpooled. Raises
    ValueError unless exactly one of the two is given, and when `vit_down` does not divide T."""
    if (image_embeds is None) == (image_tokens is None):
        raise ValueError("give either image_embeds (pooled) or image_tokens (unpooled), and not both")
    if image_tokens is not None and official:
        positive, negative = image_tokens, zero_tokens
    else:
        n, rest = divmod(zero_tokens.shape[1], vit_down)
        if rest:
            raise ValueError(f"vit_down={vit_down} does not divide {zero_tokens.shape[1]} tokens; choose a divisor")
        positive = pool_embeddings(image_tokens, n) if image_embeds is None else image_embeds
        negative = pool_embeddings(zero_tokens, n)
    tokens, pooled = resampler(positive)
    negative_tokens, negative_pooled = resampler(negative)
    return Conditioning(tokens, negative_tokens.expand_as(tokens), pooled, negative_pooled.expand_as(pooled))


def widen_conv_in(unet: UNet2DConditionModel) -> None:
    """Double the input channels of a U-Net, in place, without changing what it computes: the new weights are zero,
    and the bias is carried over, which the official code forgets."""
    old = unet.conv_in
    new = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding).to(old.weight)
    with torch.no_grad():
        new.weight.zero_()[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=new.in_channels)


def sdxl_time_ids(size: int) -> Tensor:
    """SDXL's size conditioning, uncropped: original size, crop corner, target size in px, [1, 6]."""
    return torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32)


def noise_target(scheduler: SchedulerMixin, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the U-Net should predict, [B, 4, h, w], by `scheduler.config.prediction_type`."""
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"the scheduler's prediction_type is {kind!r}, expected epsilon or v_prediction")
    return noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)


def denoising_loss(
    adapter: Callable[..., Tensor],
    latents: Tensor,
    image_embeds: Tensor,
    time_ids: Tensor,
    scheduler: SchedulerMixin,
    generator: torch.Generator | None = None,
    *,
    zero_embeds: Tensor | None = None,
    drop: float = 0.1,
    condition: Tensor | None = None,
    weights: Tensor | None = None,
    of_latents: bool = False,
) -> Tensor:
    """Loss of one training batch: predict what `noise_target` says, at random times.

    Args:
        adapter: an `SDXLAdapter`, also one wrapped for distributed training.
        latents: [B, 4, h, w], multiplied by the VAE's scaling factor.
        image_embeds, time_ids: [B, N, K], pooled, and [B, 6].
        zero_embeds: [1, N, K], pooled, of the zero picture; they replace a share `drop` of the batch, for guidance.
        condition: [B, 4, h, w], latents of condition images (zeros where there is none).
        weights: [B, 1, h, w], how much each place counts; without them all count alike, as in the official code.
        of_latents: counts by how much the latents are missed that a prediction implies. Else low noise, where a small
            miss of the latents is a large one of the prediction, counts most.

    Raises ValueError for another prediction type, and where zero_embeds and image_embeds differ in N or K.
    """
    batch, device = len(latents), latents.device
    source = generator.device if generator else device
    noise = torch.randn(latents.shape, generator=generator, device=source).to(latents)
    steps = scheduler.config.num_train_timesteps
    timesteps = torch.randint(steps, (batch,), generator=generator, device=source).to(device)
    if zero_embeds is not None:
        if zero_embeds.shape[1:] != image_embeds.shape[1:]:
            shapes = [list(e.shape[1:]) for e in (zero_embeds, image_embeds)]
            raise ValueError(f"zero_embeds are {shapes[0]} and image_embeds {shapes[1]}; pool both to the same N")
        dropped = torch.rand(batch, generator=generator, device=source).to(device) < drop
        image_embeds = torch.where(dropped[:, None, None], zero_embeds, image_embeds)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    if condition is not None:
        noisy = torch.cat([noisy, condition], dim=1)  # [B, 8, h, w]
    target = noise_target(scheduler, latents, noise, timesteps)
    errors = (adapter(noisy, timesteps, image_embeds, time_ids).float() - target.float()).square()
    if of_latents:
        kept = scheduler.alphas_cumprod.to(device)[timesteps][:, None, None, None]  # share of the latents in `noisy`
        errors = errors * (1 - kept) / (kept if scheduler.config.prediction_type == "epsilon" else 1)
    return errors.mean() if weights is None else (errors * weights).mean()
