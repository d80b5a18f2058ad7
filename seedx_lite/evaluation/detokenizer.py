"""The record of a de-tokenizer: its reconstructions of held-out scenes beside baselines and ceilings.

Everything is measured on the narrow mix, at the preset's picture size. Settings of the sampler are compared on
validation scenes; the record itself is of test scenes.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from PIL import Image

from seedx_lite.artifacts import project_path, read_manifest
from seedx_lite.data.drawn import draw_scenes, scenes
from seedx_lite.models.autoencoder import encode_pictures, round_trips
from seedx_lite.models.detokenizer import condition
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline
from seedx_lite.presets import Preset
from seedx_lite.world.scene import Scene
from .reconstruction import Target, held_out, judge, nearest_pictures, reconstruct
from .records import on_threads, save_record
from .scene_reader import compare_all, read_scenes, summarise
from .statistics import interval, mean_differences, paired

RECORD = "detokenizer_stage1"
STEPS, GUIDANCE = 25, 2.0
RECOMPUTED = 24  # scenes of a record that are drawn again to check it
BASELINES = {
    "mean": "mean training picture",
    "nearest_mean": "training picture with the nearest mean embedding",
    "nearest": "training picture with the nearest embeddings",
}
CEILINGS = {"original": "the pictures themselves", "vae": "VAE round trip"}


def evaluate(
    preset: Preset,
    folders: Mapping[str, Path],
    readers: Mapping[str, Path] | None = None,
    seed: int = 0,
    count: int = 256,
    runs: str | Path = "runs",
) -> Path:
    """Measures on `count` test scenes, prints a table, writes the record `RECORD`, beside it the
    mean training picture (.png), and returns its path.

    folders: those of `DetokenizerPipeline.from_artifacts`. readers: by name, scene readers that say what
    reconstructions and VAE round trips show. The record tells for each scene and in the mean: our
    reconstructions, the baselines, the ceilings. Differences are ours minus baseline, paired by scene.
    """
    began = time.perf_counter()
    pipe = DetokenizerPipeline.from_artifacts(**folders)
    targets = held_out(preset, min(count, preset.data.test_scenes))
    pictures = [target.picture for target in targets]
    grid = round(preset.vit.n_queries**0.5)
    cache = project_path(runs) / "cache"
    training = draw_scenes("train", preset.data.train_scenes, "narrow", preset.size, grid, cache).pictures
    mean = training.mean(0).round().astype(np.uint8)
    nearest = nearest_pictures(pipe, pictures, training)
    drawn = {
        "ours": reconstruct(pipe, pictures, range(len(targets)), STEPS, GUIDANCE, seed),
        "vae": list(round_trips(pipe.vae, np.stack(pictures))),
    }
    numbers = {
        "ours": judge(targets, drawn["ours"]),
        "mean": judge(targets, [mean] * len(targets)),
        **{name: judge(targets, [training[k] for k in chosen]) for name, chosen in nearest.items()},
        "original": judge(targets, pictures),
        "vae": judge(targets, drawn["vae"]),
    }
    record = {
        "preset": preset.name,
        "seed": seed,
        "artifacts": {name: read_manifest(folder)["id"] for name, folder in (folders | (readers or {})).items()},
        "steps": STEPS,
        "guidance": GUIDANCE,
        "training_pictures": preset.data.train_scenes,
        "indices": list(range(len(targets))),
        "nearest": nearest,
        "numbers": numbers,
        "summary": {name: {metric: interval(v) for metric, v in n.items()} for name, n in numbers.items()},
        "differences": {
            name: {m: paired(numbers["ours"][m], v) for m, v in numbers[name].items()} for name in BASELINES
        },
        "read": _read(drawn, scenes("test", len(targets), "narrow", preset.size), readers or {}),
        "tolerance": measure_tolerance(pipe, targets[:RECOMPUTED], numbers["ours"], seed),
        "sweep": guidance_and_steps_sweep(pipe, preset),
        "noise_levels": noise_levels(pipe, targets[:64], seed),
        "versions": {name: version(name) for name in ("torch", "diffusers", "numpy", "pillow")},
        "threads": torch.get_num_threads(),
        "seconds": time.perf_counter() - began,
    }
    print(table(record))
    path = save_record(RECORD, record, runs)
    Image.fromarray(mean).save(path.with_suffix(".png"))
    return path


def _read(
    drawn: Mapping[str, Sequence[np.ndarray]], wanted: Sequence[Scene], readers: Mapping[str, Path]
) -> dict[str, dict[str, Any]]:
    """What each reader says of each set of pictures, compared with the scenes."""
    loaded = {name: SceneReader.from_pretrained(folder) for name, folder in readers.items()}
    return {
        name: {
            title: summarise(compare_all(wanted, read_scenes(reader, pictures))) for title, pictures in drawn.items()
        }
        for name, reader in loaded.items()
    }


def _redrawn(
    pipe: DetokenizerPipeline, targets: Sequence[Target], steps: int, guidance: float, seed: int = 0, **kwargs: Any
) -> dict[str, list[float]]:
    """The numbers of the first scenes of a split, drawn by the pipeline; `kwargs` go to `reconstruct`."""
    pictures = [target.picture for target in targets]
    return judge(targets, reconstruct(pipe, pictures, range(len(targets)), steps, guidance, seed, **kwargs))


def measure_tolerance(
    pipe: DetokenizerPipeline,
    targets: Sequence[Target],
    numbers: Mapping[str, Sequence[float]],
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    **conditions: Any,
) -> dict[str, Any]:
    """By how much `numbers`, those of the first scenes, differ when nothing but arithmetic does.

    The scenes are drawn again with other numbers of threads, in another batch size, in float64, and with weights
    rounded to float16, as they are shipped. "repeats" are the mean absolute differences; the tolerance of a metric is
    three times the largest of them, and at least a hundredth of a level or a thousandth of IoU. conditions: as of
    `reconstruct`.
    """
    reference = {metric: values[: len(targets)] for metric, values in numbers.items()}

    def repeat(pipe: DetokenizerPipeline, **kwargs: Any) -> dict[str, float]:
        again = _redrawn(pipe, targets, steps or STEPS, guidance or GUIDANCE, seed, **conditions, **kwargs)
        return mean_differences(reference, again)

    repeats = on_threads(lambda: repeat(pipe))
    repeats["batches of 5"] = repeat(pipe, batch_size=5)
    repeats["float64"] = repeat(copy.deepcopy(pipe).to(torch.float64))
    repeats["float16 weights"] = repeat(copy.deepcopy(pipe).to(torch.float16).to(torch.float32))
    return tolerance_of(repeats) | {"repeats": repeats}


def tolerance_of(repeats: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Three times the largest difference that each metric of `reconstruction.judge` has in any of the repeats."""
    least = {"colour_error": 0.01, "thing_iou": 0.001}
    return {metric: max(small, *(3 * one[metric] for one in repeats.values())) for metric, small in least.items()}


def guidance_and_steps_sweep(pipe: DetokenizerPipeline, preset: Preset) -> list[dict[str, Any]]:
    """Means with intervals on validation scenes: guidances at `STEPS`, numbers of steps at `GUIDANCE`."""
    targets = held_out(preset, min(32, preset.data.validation_scenes), "validation")
    settings = {(STEPS, guidance) for guidance in (1.0, 1.5, 2.0, 3.0, 5.0)}
    rows = []
    for steps, guidance in sorted(settings | {(steps, GUIDANCE) for steps in (5, 10, 25, 50)}):
        row = {"steps": steps, "guidance": guidance, "scenes": len(targets)}
        numbers = _redrawn(pipe, targets, steps, guidance)
        rows.append(row | {metric: interval(values) for metric, values in numbers.items()})
    return rows


@torch.no_grad()
def noise_levels(pipe: DetokenizerPipeline, targets: Sequence[Target], seed: int) -> list[dict[str, float]]:
    """How well one prediction of the U-Net tells the picture behind the noise, at several times.

    Mean squared error of the estimated latents, which have a deviation of about 1: `with_embeddings` of the picture,
    and `without`, with those of the zero picture.
    """
    latents = encode_pictures(pipe.vae, np.stack([target.picture for target in targets]))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    tokens = pipe.vit(pipe.vit.preprocess([Image.fromarray(target.picture) for target in targets]))
    zero, vit_down = pipe.vit.zero_embeddings(), pipe.config.vit_down
    context, no_context, pooled, no_pooled = condition(pipe.resampler, zero, None, tokens, vit_down)
    rows = []
    for t in (100, 300, 500, 700, 900):
        noisy = pipe.scheduler.add_noise(latents, noise, torch.tensor([t]))
        row = {"time": t}
        for name, given, summary in (("with_embeddings", context, pooled), ("without", no_context, no_pooled)):
            added = {"text_embeds": summary, "time_ids": pipe.time_ids.expand(len(targets), -1)}
            predicted = pipe.unet(noisy, t, given, added_cond_kwargs=added).sample
            estimate = estimated_latents(pipe.scheduler, predicted, noisy, t)
            row[name] = float((estimate - latents).square().mean())
        rows.append(row)
    return rows


def estimated_latents(
    scheduler: SchedulerMixin, predicted: torch.Tensor, noisy: torch.Tensor, time_: int
) -> torch.Tensor:
    """The latents that a prediction implies: noisy = √ᾱ · latents + √(1 - ᾱ) · noise, solved for the latents."""
    alpha = scheduler.alphas_cumprod[time_]
    if scheduler.config.prediction_type == "v_prediction":
        return alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted
    return (noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt()


def table(record: Mapping[str, Any]) -> str:
    """Means and 95 % intervals of a record, and the differences to the baselines, as lines of text."""
    names = {"ours": "ours", **BASELINES, **CEILINGS}
    rows = [(names[name], row) for name, row in record["summary"].items()]
    rows += [(f"ours - {BASELINES[name]}", row) for name, row in record["differences"].items()]
    title = f"{len(record['indices'])} held-out scenes, means [95 %]"
    lines = [f"{title:<57}{'colour error':<22}thing IoU"]
    for name, row in rows:
        error, iou = row["colour_error"], row["thing_iou"]
        told = f"{error['mean']:.1f} [{error['low']:.1f}, {error['high']:.1f}]"
        lines.append(f"{name:<57}{told:<22}{iou['mean']:.3f} [{iou['low']:.3f}, {iou['high']:.3f}]")
    return "\n".join(lines)
