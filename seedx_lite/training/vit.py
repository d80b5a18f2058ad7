"""Pre-training of the visual tokenizer with its text encoders (in the paper: Qwen-VL's ViT, downloaded).

A feature that need only match a caption may forget where things are, and what forgets cannot be decoded. So three
objectives share each picture: match its caption (with places) among those of the batch; name the kind, colour, part and
pose under each token, and the box of the thing there; and recall the token's own place and pixels.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seedx_lite.artifacts import ensure, project_path
from seedx_lite.data import drawn
from seedx_lite.models.readers import TokenHeads
from seedx_lite.models.vit import VisionTransformerWithAttnPool, normalise, pool_embeddings, pooled_boxes
from seedx_lite.presets import Preset
from .loop import train
from .text import FOLDERS, CaptionSource, new_text_encoders

CLASSES = {name: getattr(drawn, f"{name.upper()}_CLASSES") for name in ("kind", "colour", "part", "pose")}
CAPTIONS = {"full": 0.5, "partial": 0.2, "grounded": 0.3}  # shares of the kinds


class _ViTWithText(nn.Module):
    """What is trained together: tokenizer, its readers, both text encoders."""

    def __init__(self, vit: nn.Module, heads: TokenHeads, first: nn.Module, second: nn.Module):
        super().__init__()
        self.vit, self.heads, self.first, self.second = vit, heads, first, second

    def match(self, tokens: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """Contrastive loss against both text encoders, and the share of pictures whose own caption fits best."""
        texts = self.first(captions).pooler_output, self.second(captions).text_embeds
        pairs = zip(self.heads.embed(tokens.float()), texts, self.heads.logit_scale.clamp(max=4.6).exp(), strict=True)
        own = torch.arange(len(captions), device=captions.device)
        losses, hits = [], []
        for image, text, scale in pairs:
            scores = scale * image @ F.normalize(text.float(), dim=-1).T  # [B, B]
            losses.append((F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2)
            hits.append((scores.argmax(dim=1) == own).float().mean())
        return sum(losses), hits[1]


@torch.no_grad()
def start_local(tower: VisionTransformerWithAttnPool) -> None:
    """Let each query of the attention pool first look where it stands on the grid.

    Queries and keys carry the same table of positions; with equal projections their product is largest at equal places.
    From a random start the pool would spend a large part of a short training on finding this.
    """
    pool = tower.attn_pool
    width = pool.attn.embed_dim
    pool.attn.in_proj_weight[:width] *= 3
    pool.attn.in_proj_weight[width : 2 * width] = pool.attn.in_proj_weight[:width]
    pool.ln_q.weight.fill_(0.1)  # what a query wants beside its place is still noise


def dense_losses(read: dict[str, Tensor], batch: dict[str, Tensor], pooled: int | None = None) -> dict[str, Tensor]:
    """Losses of the token readers; colour, pose and box count only where there is something to read.

    pooled: asks the box of so many pooled tokens, too. One that lies half on a thing, half beside it should tell where
    that thing is, so the tokens beside it have to know.
    """
    losses, emphasis = {}, drawn.thing_weights(batch["kind"].float())  # [B, T]
    for name in CLASSES:
        scores, truth = read[name].flatten(0, 1).float(), batch[name].flatten().long()
        told = {"colour": truth > 0, "pose": batch["pose"].flatten() > 0}.get(name, emphasis.flatten())
        losses[name] = (F.cross_entropy(scores, truth, reduction="none") * told).sum() / told.sum().clamp(min=1)
    things = batch["kind"] >= 2
    distance = (read["box"].float() - batch["box"]).abs().mean(-1)
    losses["box"] = 4 * (distance * things).sum() / things.sum().clamp(min=1)
    if pooled:
        boxes, alone = pooled_boxes(things, batch["box"], pooled)
        told = pool_embeddings(read["box"].float(), pooled)  # the reader is linear: as if it read pooled tokens
        losses["pooled_box"] = 4 * ((told - boxes).abs().mean(-1) * alone).sum() / alone.sum().clamp(min=1)
    side = round(batch["kind"].shape[1] ** 0.5)
    steps = (torch.arange(side, device=things.device) + 0.5) / side
    places = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten(0, 1)  # [T, 2]: row, column
    losses["place"] = 4 * (read["place"].float() - places).abs().mean()
    errors = (read["pixels"].float() - batch["pixels"]).square().mean(-1)
    losses["pixels"] = (errors * emphasis).mean()
    return losses


def vit(preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs") -> Path:
    """Trains the tokenizer and both text encoders on the broad mix; returns the folder of the artifact."""
    config, longer, size = preset.training.vit, preset.training.vit_dense, preset.image_size
    most = preset.data.second if longer else preset.data.train_scenes
    grid = round(preset.vit.n_queries**0.5)
    cell = size // grid

    def build_vit(folder: Path) -> None:
        cache = project_path(runs) / "cache"
        truth = drawn.draw_scenes("train", most, "broad", (size, size), grid, cache)
        torch.manual_seed(seed)
        tokenizer, first, second = new_text_encoders(preset)
        tower = VisionTransformerWithAttnPool(**asdict(preset.vit))
        start_local(tower)
        dims = (preset.text_encoder.hidden_size, preset.text_encoder_2.projection_dim)
        model = _ViTWithText(
            tower,
            TokenHeads(preset.vit.output_dim, cell, dims, {name: len(names) for name, names in CLASSES.items()}),
            first,
            second,
        )
        captions = CaptionSource(tokenizer, "train", len(truth.pictures), "broad", (size, size), CAPTIONS)

        def batch_at(
            step: int, share: int, generator: torch.Generator, among: int = preset.data.train_scenes
        ) -> dict[str, Tensor]:
            chosen = torch.randint(among, (share,), generator=generator).numpy()
            images = normalise(truth.pictures[chosen])
            cells = images.unfold(2, cell, cell).unfold(3, cell, cell)  # [B, 3, grid, grid, cell, cell]
            batch = {name: torch.from_numpy(getattr(truth, name)[chosen]) for name in (*CLASSES, "box")}
            pixels = cells.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # [B, T, 3·cell²]
            return batch | {"images": images, "pixels": pixels, "captions": captions.tokens(chosen.tolist(), generator)}

        def loss_of(
            model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator, pooled: int | None = None
        ) -> tuple[Tensor, dict]:
            tokens = model.vit(batch["images"])  # [B, T, D]
            matching, hits = model.match(tokens, batch["captions"])
            dense = dense_losses(model.heads(tokens), batch, pooled)
            logs = {name: value.detach() for name, value in dense.items()}
            return matching + sum(dense.values()), logs | {"matching": matching.detach(), "hits": hits}

        record = train(model, batch_at, loss_of, config, folder, seed=seed, title="ViT and text encoders")
        if longer:
            record.save(folder / "joint" / "training.json")
            first.requires_grad_(False)
            second.requires_grad_(False)
            batches, losses = partial(batch_at, among=most), partial(loss_of, pooled=preset.n_embeddings)
            record = train(model, batches, losses, longer, folder / "dense", seed=seed + 1, title="ViT")
        model.to("cpu")
        tower.save_pretrained(folder)
        model.heads.save_pretrained(folder / "heads")
        for name, part in zip(FOLDERS, (tokenizer, first, second), strict=True):
            part.save_pretrained(folder / name)
        record.save(folder / "training.json")

    texts = {"text_encoder": asdict(preset.text_encoder), "text_encoder_2": asdict(preset.text_encoder_2)}
    recipe = {"vit": asdict(preset.vit), **texts, "training": config.recipe, "image_size": size}
    recipe |= {"captions": CAPTIONS, "emphasis": drawn.EMPHASIS, "scenes": preset.data.train_scenes}
    if longer:
        recipe |= {"training_dense": longer.recipe, "pooled": preset.n_embeddings, "second_scenes": most}
    return ensure("vit", build_vit, preset=preset.name, seed=seed, config=recipe, retrain=retrain, runs=runs)
