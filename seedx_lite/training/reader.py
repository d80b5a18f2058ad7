"""Training of the scene reader, the instrument that all later work is measured by; it knows nothing of our models.

It sees renders of the broad mix and the truth about each scene; no visual embedding, no generated picture. Some renders
are blurred, grainy or compressed as mildly as a VAE or a JPEG would, some have lost sun or moon. A ninth of them show
combinations of kind and colour that are held out from all models: an instrument must not be blind to what models are
asked for.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F

from seedx_lite.artifacts import ensure, project_path
from seedx_lite.data.drawn import draw_scenes, plain_sky, scenes
from seedx_lite.models.autoencoder import to_tensor
from seedx_lite.models.scene_reader import CELL, SceneReader
from seedx_lite.presets import Preset
from seedx_lite.world.scene import COLOURS, FACINGS, GROUNDS, KINDS, POSES, SKIES, Scene
from .loop import train

SPREAD = 0.8  # standard deviation, in cells, of the bell around a centre
NEAR = 0.3  # height of the bell above which a cell is asked what the thing is
COMPOSITION = 8  # for so many training scenes one of held-out combinations
DAMAGE = {"no sun": 0.3, "blur": 0.3, "noise": 0.3, "compression": 0.3}  # shares; a picture may get several


def damage(picture: np.ndarray, kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture uint8 [H, W, 3] without sun, moon and clouds (by `plain_sky`, from the `kinds` of its cells), mildly
    blurred (radius to 0.7 px), grainy (to 6 levels) or compressed (JPEG, quality 60 to 95), each with its share in
    `DAMAGE`.

    Without the first, a reader knows the time of day by sun and moon alone, which pictures of models may lack.
    """
    chosen = {name: rng.random() < share for name, share in DAMAGE.items()}
    if chosen["no sun"]:
        picture = plain_sky(picture, kinds)
    if chosen["blur"]:
        blurred = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
        picture = np.asarray(blurred)
    if chosen["noise"]:
        noisy = picture + rng.normal(0, rng.uniform(1, 6), picture.shape)
        picture = noisy.round().clip(0, 255).astype(np.uint8)
    if chosen["compression"]:
        with io.BytesIO() as file:
            Image.fromarray(picture).save(file, "JPEG", quality=int(rng.integers(60, 96)))
            picture = np.asarray(Image.open(file))
    return picture


def truth_table(chosen: Sequence[Scene]) -> dict[str, Tensor]:
    """What the reader should say of K scenes with at most M things each.

    `centre`, `size`: float [K, M, 2], x and y, width and height, as fractions of the picture. `kind`, `colour`, `pose`,
    `facing`: int64 [K, M], -1 where there is none. `sky`, `ground`: [K]. `level`: float [K, 2], light and horizon.
    """
    most = max(len(scene.things) for scene in chosen)
    names = {"kind": KINDS, "colour": COLOURS, "pose": POSES, "facing": FACINGS}
    table = {name: np.full((len(chosen), most), -1) for name in names}
    table |= {name: np.zeros((len(chosen), most, 2), np.float32) for name in ("centre", "size")}
    for row, scene in enumerate(chosen):
        for column, thing in enumerate(scene.things):
            left, top, right, bottom = scene.box(thing)
            table["centre"][row, column] = (left + right) / 2, (top + bottom) / 2
            table["size"][row, column] = right - left, bottom - top
            for name, known in names.items():
                if (value := getattr(thing, name)) is not None:
                    table[name][row, column] = known.index(value)
    table["sky"] = np.array([SKIES.index(scene.sky) for scene in chosen])
    table["ground"] = np.array([GROUNDS.index(scene.ground) for scene in chosen])
    table["level"] = np.array([(scene.light, scene.horizon) for scene in chosen], np.float32)
    return {name: torch.from_numpy(value) for name, value in table.items()}


def reader_losses(read: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses of `SceneReader`'s outputs against rows of `truth_table`.

    Centres by the focal loss of CenterNet (arXiv 1904.07850), the rest by cross-entropy or absolute error, asked of the
    cells close to a centre: those where its bell is above `NEAR`.
    """
    rows, columns = read["centre"].shape[2:]
    sides = torch.tensor([columns, rows], device=read["centre"].device)
    middles = torch.cartesian_prod(*(torch.arange(n, device=sides.device) + 0.5 for n in (rows, columns))).flip(1)
    there = truth["kind"] >= 0  # [B, M]
    offset = truth["centre"][:, :, None] * sides - middles  # [B, M, h·w, 2], cells
    bell = torch.exp(-offset.square().sum(-1) / (2 * SPREAD**2)) * there[..., None]  # [B, M, h·w]
    kinds = F.one_hot(truth["kind"].clamp(min=0), read["centre"].shape[1]).float()  # [B, M, kinds]
    wanted = (bell[:, :, None] * kinds[..., None]).amax(1)  # [B, kinds, h·w]
    peak = torch.zeros_like(bell).scatter_(2, bell.argmax(2, keepdim=True), 1) * there[..., None]
    hit = (peak[:, :, None] * kinds[..., None]).amax(1) > 0  # [B, kinds, h·w]
    scores, count = read["centre"].flatten(2), there.sum().clamp(min=1)
    chance = scores.sigmoid()
    found = -(1 - chance).square() * F.logsigmoid(scores)
    false = -((1 - wanted) ** 4) * chance.square() * F.logsigmoid(-scores)
    losses = {"centre": torch.where(hit, found, false).sum() / count}

    strength, owner = bell.max(1)  # [B, h·w]: the thing whose centre is closest
    weight = strength * (strength > NEAR)

    def of_owner(values: Tensor) -> Tensor:
        """[B, M] or [B, M, 2] → [B, h·w, …], the value of the owner of each cell."""
        index = owner.reshape(*owner.shape, *[1] * (values.ndim - 2)).expand(*owner.shape, *values.shape[2:])
        return values.gather(1, index)

    def mean(errors: Tensor, weight: Tensor) -> Tensor:
        return (errors * weight).sum() / weight.sum().clamp(min=1)

    for name in ("colour", "pose", "facing"):
        answers = of_owner(truth[name])
        errors = F.cross_entropy(read[name].flatten(2), answers.clamp(min=0), reduction="none")  # [B, h·w]
        losses[name] = mean(errors, weight * (answers >= 0))
    near = offset.gather(1, owner[:, None, :, None].expand(-1, -1, -1, 2))[:, 0]  # [B, h·w, 2]
    losses["offset"] = mean((read["offset"].flatten(2).mT - near).abs().sum(-1), weight)
    sizes = (of_owner(truth["size"]) * sides).clamp(min=0.1).log()
    losses["size"] = mean((read["size"].flatten(2).mT - sizes).abs().sum(-1), weight)
    for name in ("sky", "ground"):
        losses[name] = F.cross_entropy(read[name], truth[name])
    losses["level"] = (read["level"] - truth["level"]).abs().mean()
    return losses


def reader(
    preset: Preset, seed: int = 0, retrain: bool = False, runs: str | Path = "runs", name: str = "reader"
) -> Path:
    """Trains the scene reader on the broad mix; `reader_2` is one of another architecture. Returns the folder."""
    sizes, config = getattr(preset, name), getattr(preset.training, name)
    size, count = preset.size, preset.data.reader_scenes

    def build(folder: Path) -> None:
        grid = round(preset.vit.n_queries**0.5)
        cache, parts = project_path(runs) / "cache", {"train": count, "composition": count // COMPOSITION}
        drawn = [draw_scenes(split, many, "broad", size, grid, cache) for split, many in parts.items()]
        truth = truth_table([scene for split, many in parts.items() for scene in scenes(split, many, "broad", size)])
        torch.manual_seed(seed)
        answers = {"kinds": KINDS, "colours": COLOURS, "poses": POSES, "skies": SKIES, "grounds": GROUNDS}
        model = SceneReader(**asdict(sizes), **{key: list(names) for key, names in answers.items()})

        def batch_at(step: int, share: int, generator: torch.Generator) -> dict[str, Tensor]:
            chosen = torch.randint(sum(parts.values()), (share,), generator=generator)
            rng = np.random.default_rng(torch.randint(2**31, (), generator=generator).item())
            rows = [(drawn[0], i) if i < count else (drawn[1], i - count) for i in chosen.tolist()]  # stay on disk
            damaged = np.stack([damage(part.pictures[i], part.kind[i], rng) for part, i in rows])
            return {"images": to_tensor(damaged)} | {key: values[chosen] for key, values in truth.items()}

        def loss_of(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict]:
            losses = reader_losses(model(batch["images"]), batch)
            return sum(losses.values()), losses

        record = train(model, batch_at, loss_of, config, folder, seed=seed, title=f"scene reader ({sizes.backbone})")
        model.to("cpu").save_pretrained(folder)
        record.save(folder / "training.json")

    recipe = {"model": asdict(sizes), "training": config.recipe, "scenes": count, "image_size": preset.image_size}
    recipe |= {"cell": CELL, "spread": SPREAD, "near": NEAR, "damage": DAMAGE, "composition": COMPOSITION}
    about = {"preset": preset.name, "seed": seed, "config": recipe, "retrain": retrain, "runs": runs}
    return ensure(name, build, **about)


def reader_2(preset: Preset, **options) -> Path:
    """`reader` with the second architecture."""
    return reader(preset, name="reader_2", **options)
