"""Cross-attention from a fixed set of learned queries to a sequence of any length.

`Resampler` sits on both sides of the language model and, as attention pool, at the end of the vision encoder.
`ResamplerXLV2` turns visual embeddings into what an SDXL U-Net expects from its two text encoders.

Axes: B batch, L incoming tokens, Q queries, K channels of the incoming tokens, D channels inside, H heads.
"""

import itertools
import math

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional as F

from .weights import SavedModule, arguments


def sincos_table(grid_size: int, dim: int) -> Tensor:
    """Fixed 2-d sine-cosine positions of a square grid, row by row: [grid_size², dim], `dim` in fours.

    The first half of the channels holds the column, the second the row; each half is sines, then cosines.
    """
    if dim % 4:
        raise ValueError(f"a 2-d sine-cosine table needs channels in fours, got {dim}")
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequency  # [grid, D/4]
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # [grid, D/2]
    return torch.cat([axis.repeat(grid_size, 1), axis.repeat_interleave(grid_size, 0)], dim=1).float()


def resize_table(table: Tensor, count: int) -> Tensor:
    """A table of positions [G², D] on the square grid of `count` tokens: [count, D], bicubic, in float32. Raises
    ValueError when `count` is no square number."""
    source, target = math.isqrt(len(table)), math.isqrt(count)
    if target**2 != count:
        raise ValueError(f"got {count} tokens, expected a square number of them (positions lie on a square grid)")
    if source == target:
        return table
    grid = table.float().unflatten(0, (source, source)).permute(2, 0, 1)[None]  # [1, D, G, G]
    grid = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return grid[0].flatten(1).T.to(table.dtype)  # [count, D]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention of q [B, Q, D] over k, v [B, L, D]: [B, Q, D]."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # [B, H, ·, D/H]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Resampler(nn.Module):
    """One cross-attention layer with grid_size² learned queries: [B, L, K] → [B, grid_size², D].

    Paper §3.3; official `src/models/tokenizer/qwen_visual.py`. L is any square number (ValueError for another): keys
    get the table of positions, resized to the grid of the incoming tokens, and values get none. `embed_dim`, D, is a
    multiple of 4 and of `num_heads`; `kv_dim` is K where it differs; `eps` is 1e-6 inside the vision encoder.
    """

    def __init__(self, grid_size: int, embed_dim: int, num_heads: int, kv_dim: int | None = None, eps: float = 1e-5):
        super().__init__()
        self.register_buffer("pos_embed", sincos_table(grid_size, embed_dim))
        self.query = nn.Parameter(torch.empty(grid_size**2, embed_dim))
        nn.init.trunc_normal_(self.query, std=0.02)
        projects = kv_dim not in (None, embed_dim)
        self.kv_proj = nn.Linear(kv_dim, embed_dim, bias=False) if projects else nn.Identity()
        self.attn = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.ln_q = nn.LayerNorm(embed_dim, eps=eps)
        self.ln_kv = nn.LayerNorm(embed_dim, eps=eps)

    def forward(
        self, x: Tensor, return_attention: bool = False, latents: Tensor | float = 0.0
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x [B, L, K] → [B, Q, D]; with `return_attention` also the weights [B, H, Q, L]. latents: [B, Q, D], what is
        added to the queries."""
        value = self.ln_kv(self.kv_proj(x))  # [B, L, D]
        key = value + resize_table(self.pos_embed, x.shape[1])
        query = (self.ln_q(self.query + latents) + self.pos_embed).expand(len(x), -1, -1)  # [B, Q, D]
        out, weights = self.attn(query, key, value, need_weights=return_attention, average_attn_weights=False)
        return (out, weights) if return_attention else out


class DeepResampler(nn.Module):
    """`depth` layers of `Resampler`, each followed by a feed-forward part, with residuals: [B, L, K] → [B, Q, D]. The
    paper compares its single layer with such a connector (§4.3, Fig. 8) and does not give the size of the latter.

    width: channels inside, where they are not D; settings: arguments of `Resampler`. With a depth of 1 there is no
    feed-forward part: a single layer that may be as large as several.
    """

    def __init__(self, embed_dim: int, depth: int = 1, width: int | None = None, ff_mult: int = 4, **settings) -> None:
        super().__init__()
        inner, deep = width or embed_dim, depth > 1
        self.layers = nn.ModuleList(Resampler(embed_dim=inner, **settings) for _ in range(depth))
        self.mlps = nn.ModuleList(feed_forward(inner, inner * ff_mult) for _ in range(depth * deep))
        self.out_proj = nn.Identity() if inner == embed_dim else nn.Linear(inner, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, K] → [B, Q, D]."""
        latents = 0.0
        for place, layer in enumerate(self.layers):
            latents = latents + layer(x, latents=latents)  # [B, Q, inner]
            if self.mlps:
                latents = latents + self.mlps[place](latents)
        return self.out_proj(latents)


class PerceiverAttention(nn.Module):
    """Queries attend over the incoming tokens and over themselves."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head * heads, bias=False)
        self.to_out = nn.Linear(dim_head * heads, dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """x [B, L, D], latents [B, Q, D] → [B, Q, D]."""
        latents = self.norm2(latents)
        k, v = self.to_kv(torch.cat([self.norm1(x), latents], dim=1)).chunk(2, dim=2)  # [B, L+Q, D]
        return self.to_out(attend(self.to_q(latents), k, v, self.heads))


def feed_forward(dim: int, hidden: int) -> nn.Sequential:
    """Pre-norm, exact GELU, no biases: [B, Q, D] → [B, Q, D]."""
    up, down = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)
    return nn.Sequential(nn.LayerNorm(dim), up, nn.GELU(), down)


class FlowResampler(nn.Module):
    """Visual embeddings drawn from noise by flow matching (arXiv 2210.02747), in place of one prediction: SEED-X
    regresses to their mean; later models (BLIP3-o, arXiv 2505.09568) do this.

    The connector of regression reads the hidden states, and layers upon it see a point of the straight way from noise
    to embeddings, `noisy` = (1 - time) · noise + time · embeddings. They predict the embeddings, and so the velocity,
    (embeddings - noisy) / (1 - time).

    Args:
        grid_size, embed_dim, num_heads, kv_dim: as of `Resampler`.
        depth: of the connector, a `DeepResampler`.
        layers: how many see the noisy embeddings.
        shift: how much earlier than evenly spread the times are, see `early`.
    """

    def __init__(
        self, grid_size: int, embed_dim: int, num_heads: int, kv_dim: int | None = None, depth=1, layers=2, shift=8.0
    ) -> None:
        super().__init__()
        self.shift = shift
        self.connector = DeepResampler(embed_dim, depth, grid_size=grid_size, num_heads=num_heads, kv_dim=kv_dim)
        self.noisy_proj = nn.Linear(embed_dim, embed_dim)
        self.time_mlp = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))
        self.register_buffer("pos_embed", sincos_table(grid_size, embed_dim))
        sizes = embed_dim, embed_dim // num_heads, num_heads
        pairs = ((PerceiverAttention(*sizes), feed_forward(embed_dim, 4 * embed_dim)) for _ in range(layers))
        self.layers = nn.ModuleList(map(nn.ModuleList, pairs))
        self.out = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, embed_dim))

    def forward(self, read: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """read [B, Q, D], by the connector; noisy [B, Q, D]; time [B] in 0..1 → embeddings [B, Q, D], predicted:
        trained towards their mean, given all three."""
        told = get_timestep_embedding(1000 * time, noisy.shape[2]).to(noisy)  # [B, D]
        latents = read + self.noisy_proj(noisy) + self.pos_embed + self.time_mlp(told)[:, None]
        for attention, mlp in self.layers:
            latents = latents + attention(read, latents)
            latents = latents + mlp(latents)
        return read + self.out(latents)

    def errors(self, x: Tensor, target: Tensor) -> Tensor:
        """Squared errors [B, Q, D] for hidden states x [B, L, K] and embeddings `target` of about unit size, at random
        times of which most are early: those of the velocity, times (1 - time)²."""
        noise, time = torch.randn_like(target), self.early(torch.rand(len(target))).to(target)
        share = time[:, None, None]
        return (self(self.connector(x), (1 - share) * noise + share * target, time) - target).square()

    def early(self, time: Tensor) -> Tensor:
        """Even times in 0..1 moved towards 0, as is done for high resolutions (arXiv 2403.03206, section 5.3.2). At
        `lite`, 64 embeddings a quarter of the way to 1 tell most of a picture, and with even times the head learned to
        leave the hidden states unread."""
        return time / (time + self.shift * (1 - time))

    @torch.no_grad()
    def draw(self, x: Tensor, generator: torch.Generator | None = None, steps: int = 25) -> Tensor:
        """Embeddings [B, Q, D] for hidden states x [B, L, K], in so many steps, the first ones small: with 25 and a
        shift of 8 the last one goes from .75 to 1, to the mean of what is still open."""
        read = self.connector(x)
        noisy = torch.randn(read.shape, generator=generator).to(x)
        for now, then in itertools.pairwise(self.early(torch.linspace(0, 1, steps + 1)).to(x)):
            noisy = noisy + (then - now) / (1 - now) * (self(read, noisy, now.expand(len(x))) - noisy)
        return noisy


class AttentionPool(nn.Module):
    """One vector from Q tokens: their mean, with its own position, attends over itself and all of them."""

    def __init__(self, tokens: int, dim: int, heads: int, output_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(tokens + 1, dim) / dim**0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.c_proj = nn.Linear(dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, Q, D] → [B, output_dim]."""
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding  # [B, 1+Q, D]
        pooled = attend(self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x), self.heads)
        return self.c_proj(pooled[:, 0])


class ResamplerXLV2(SavedModule):
    """Visual embeddings [B, L, K] to what SDXL's U-Net reads: Q tokens and one pooled vector.

    Paper §3.1; official `src/models/detokenizer/resampler.py`. It adds no positions to the incoming tokens:
    their order is invisible to it.

    Args:
        num_queries, embedding_dim: Q, the number of tokens that the U-Net reads, whatever L is; and K.
        output1_dim, output2_dim: widths of the two text encoders whose place is taken.
        normalize: scale each incoming token to length 1 (off in every released configuration); where `official`, as in
            the released code, each channel over the tokens instead.
    """

    def __init__(
        self,
        dim: int = 1024,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 16,
        num_queries: int = 64,
        embedding_dim: int = 4096,
        output1_dim: int = 768,
        output2_dim: int = 1280,
        ff_mult: int = 4,
        normalize: bool = False,
        official: bool = False,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        self.config = config
        self.normalize_dim = (1 if official else 2) if normalize else None
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.norm_out = nn.LayerNorm(dim)
        layers = ((PerceiverAttention(dim, dim_head, heads), feed_forward(dim, dim * ff_mult)) for _ in range(depth))
        self.layers = nn.ModuleList(map(nn.ModuleList, layers))
        self.unet_proj_1 = nn.Linear(dim, output1_dim)
        self.unet_proj_2 = nn.Linear(dim, output2_dim)
        self.unet_attnpool = AttentionPool(num_queries, dim, heads, output2_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, L, K] → prompt embeddings [B, Q, output1+output2], pooled embedding [B, output2]."""
        if self.normalize_dim is not None:
            x = F.normalize(x, dim=self.normalize_dim)
        x = self.proj_in(x)  # [B, L, D]
        latents = self.latents.expand(len(x), -1, -1)  # [B, Q, D]
        for attention, mlp in self.layers:
            latents = latents + attention(x, latents)
            latents = latents + mlp(latents)
        latents = self.norm_out(latents)
        tokens = torch.cat([self.unet_proj_1(latents), self.unet_proj_2(latents)], dim=2)
        return tokens, self.unet_attnpool(latents)
