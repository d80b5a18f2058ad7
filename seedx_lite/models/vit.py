"""The visual tokenizer (paper §3.1): Qwen-VL's ViT, without class token, read out by learned queries.

Axes: B batch, S image side in pixels, L grid tokens, W width, H heads, T queries, D output_dim.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from .resamplers import Resampler, resize_table
from .weights import SavedModule, arguments

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
POSITIONS = 256  # rows of the table of positions (16×16), whatever the image size: part of the checkpoint format
EPS = 1e-6  # of every LayerNorm in this file


def preprocess(images: Sequence[Image.Image], image_size: int) -> Tensor:
    """Pictures as the encoder reads them: bicubic resize to a square (aspect ratio not kept), to 0..1, CLIP's mean and
    deviation, in the official order: [B, 3, S, S] float32. Raises ValueError for an empty list."""
    if not images:
        raise ValueError("no images given, expected at least one")
    size = (image_size, image_size)
    return normalise(np.stack([i.convert("RGB").resize(size, Image.Resampling.BICUBIC) for i in images]))


def normalise(pictures: np.ndarray) -> Tensor:
    """Pictures uint8 [B, S, S, 3] of the encoder's size → [B, 3, S, S] with CLIP's mean and deviation."""
    pixels = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(c)[:, None, None] for c in (CLIP_MEAN, CLIP_STD))
    return ((pixels - mean) / std).contiguous()


def pool_embeddings(embeddings: Tensor, n: int) -> Tensor:
    """Average runs of consecutive tokens (1-d average pooling, paper §3.1): [B, T, D] → [B, n, D].

    Raises ValueError when n does not divide T.
    """
    tokens = embeddings.shape[1]
    if n < 1 or tokens % n:
        divisors = [d for d in range(1, tokens + 1) if tokens % d == 0]
        raise ValueError(f"cannot pool {tokens} visual embeddings to {n}; choose a divisor of {tokens}: {divisors}")
    return embeddings.unflatten(1, (n, tokens // n)).mean(dim=2)


class Attention(nn.Module):
    """Self-attention; the rows of `in_proj` are grouped per head, each holding its q, k and v in turn."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, W] → [B, L, W]."""
        q, k, v = self.in_proj(x).unflatten(2, (self.heads, -1)).transpose(1, 2).chunk(3, dim=3)  # [B, H, L, W/H]
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block, exact GELU."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=EPS)
        self.ln_2 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        layers = [("c_fc", nn.Linear(width, hidden)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(hidden, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, W] → [B, L, W]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class VisionTransformerWithAttnPool(SavedModule):
    """Images [B, 3, S, S] → visual embeddings [B, T, D].

    Official `src/models/tokenizer/qwen_visual.py`; the parameter names are those of `qwen_vit_G.pt`.

    Args:
        image_size: S that `preprocess` makes; the forward pass takes any square multiple of `patch_size`.
        n_queries, output_dim: T, a square number, and D.
        pool_heads: heads of the attention pool; default output_dim // 128, as in the official code.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        n_queries: int = 256,
        output_dim: int = 512,
        pool_heads: int | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        pool_heads = output_dim // 128 if pool_heads is None else pool_heads
        grid = math.isqrt(n_queries)
        if grid**2 != n_queries or image_size % patch_size or width % heads or not pool_heads:
            wanted = "n_queries has to be a square number, image_size a multiple of patch_size, width one of heads"
            few = "below output_dim 128 pool_heads has to be set"
            raise ValueError(f"cannot build a vision encoder of {config}: {wanted}; {few}")
        self.config = config | {"pool_heads": pool_heads}
        self.image_size, self.patch_size = image_size, patch_size
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn(POSITIONS, width) / width**0.5)
        self.ln_pre = nn.LayerNorm(width, eps=EPS)
        blocks = nn.Sequential(*(Block(width, heads, int(width * mlp_ratio)) for _ in range(layers)))
        self.transformer = nn.Sequential(OrderedDict(resblocks=blocks))
        self.attn_pool = Resampler(grid, output_dim, pool_heads, kv_dim=width, eps=EPS)
        self.ln_post = nn.LayerNorm(output_dim, eps=EPS)
        self.proj = nn.Parameter(torch.randn(output_dim, output_dim) / output_dim**0.5)

    def grid_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] → tokens of the patch grid after the blocks, row by row: [B, L, W].

        Raises ValueError for images that are not square or no multiple of the patch size.
        """
        height, width = images.shape[-2:]
        if height != width or height % self.patch_size:
            wanted = f"expected square ones with a multiple of {self.patch_size} pixels; use `preprocess`"
            raise ValueError(f"images are {width}×{height} (width×height), {wanted}")
        x = self.conv1(images).flatten(2).transpose(1, 2)  # [B, L, W]
        return self.transformer(self.ln_pre(x + resize_table(self.positional_embedding, x.shape[1])))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S], from `preprocess` → visual embeddings [B, T, D]."""
        return self.ln_post(self.attn_pool(self.grid_tokens(images))) @ self.proj

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """`preprocess` at this encoder's image size, on its device: [B, 3, S, S]."""
        return preprocess(images, self.image_size).to(self.proj.device)

    def zero_embeddings(self) -> Tensor:
        """Embeddings [1, T, D] of the zero picture (zeros after normalisation): unconditional in guidance."""
        return self(self.proj.new_zeros(1, 3, self.image_size, self.image_size))


def pooled_boxes(things: Tensor, boxes: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The boxes [B, n, 4] that `n` pooled tokens should tell, and bool [B, n]: which of them lie on one thing alone.

    things: bool [B, T], which tokens show a thing; boxes: [B, T, 4], of the thing under each token.
    """
    on = things.unflatten(1, (n, -1))[..., None]  # [B, n, c, 1]
    boxes = boxes.unflatten(1, (n, -1))  # [B, n, c, 4]
    low = boxes.masked_fill(~on, torch.inf).amin(2)
    high = boxes.masked_fill(~on, -torch.inf).amax(2)
    alone = (low == high).all(-1)
    return low.masked_fill(~alone[..., None], 0), alone


@torch.no_grad()
def embed_pictures(
    tower: VisionTransformerWithAttnPool,
    pictures: np.ndarray,
    n: int | None = None,
    dtype: torch.dtype = torch.float32,
    batch: int = 64,
) -> Tensor:
    """Visual embeddings of uint8 pictures [K, H, W, 3], pooled to `n` if given: [K, n, D] in `dtype`, on the CPU.

    Raises ValueError for pictures of another size than the ViT's.
    """
    from tqdm.auto import tqdm

    if pictures.shape[1:3] != (tower.image_size,) * 2:
        raise ValueError(f"pictures of {pictures.shape[1:3]} px, the ViT reads {tower.image_size}: resize them")
    starts = range(0, len(pictures), batch)
    parts = [torch.zeros(0, n or tower.config["n_queries"], tower.config["output_dim"], dtype=dtype)]
    for start in tqdm(starts, desc="visual embeddings", disable=len(starts) < 20):
        tokens = tower(normalise(pictures[start : start + batch]).to(tower.proj))  # [B, T, D]
        parts.append((tokens if n is None else pool_embeddings(tokens, n)).to("cpu", dtype))
    return torch.cat(parts)
