"""Between pictures and the latents of an `AutoencoderKL`, in batches.

Axes: K pictures, H, W their height and width, h, w those of the latents, c channels of a latent.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor


def read_vae(folder: str | Path, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The VAE of a folder of an SDXL-type pipeline, whatever the files' dtype. Raises OSError where it is missing."""
    return AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=dtype).eval()


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [K, H, W, 3] → float [K, 3, H, W] in -1 to 1, the range of the VAE."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> Tensor:
    """uint8 pictures [K, H, W, 3] → latents times the scaling factor, as a U-Net has them: [K, c, h, w] on the CPU."""
    from tqdm.auto import tqdm

    starts, parts = range(0, len(pictures), batch), []
    for start in tqdm(starts, desc="latents", disable=len(starts) < 20):
        pixels = to_tensor(pictures[start : start + batch]).to(vae.device, vae.dtype)
        parts.append(vae.encode(pixels).latent_dist.mode().float().cpu() * vae.config.scaling_factor)
    return torch.cat(parts)


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor, batch: int = 64) -> np.ndarray:
    """The inverse of `encode_pictures`, as far as the VAE is one."""
    parts = []
    for part in latents.split(batch):
        pixels = vae.decode(part.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample.float()
        parts.append(((pixels + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy())
    return np.concatenate(parts)


def round_trips(vae: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """Pictures through encoder and decoder: what is lost here, nothing that draws by this VAE can bring back."""
    return decode_latents(vae, encode_pictures(vae, pictures))
