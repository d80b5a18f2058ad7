"""Pre-training of the multimodal language model (paper §3.3 and appendix B; its code was never released).

One corpus of scenes, told as captions in both orders, questions, descriptions with boxes and detections, teaches it to
read and to draw: cross-entropy on the words, and squared error to the pooled visual embeddings of what is drawn. An
`MLLMVariant` says in what one model of a comparison differs from the main model.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from seedx_lite.artifacts import ensure, processes, project_path, read_manifest
from seedx_lite.data.anyres import grid_resolutions
from seedx_lite.data.check import data_files
from seedx_lite.data.collate import collate
from seedx_lite.data.corpora import DRAWN, FORMS, TURNS, UNCUT, Corpus, Files, Mixture, Scenes
from seedx_lite.data.layout import IGNORED, Layout, Sample
from seedx_lite.data.prompts import READING
from seedx_lite.data.tokenizer import IMAGE_TOKENS, llm_tokenizer
from seedx_lite.models.mllm import ContinuousLVLM, ContinuousLVLMConfig
from seedx_lite.models.vit import VisionTransformerWithAttnPool, pool_embeddings
from seedx_lite.presets import Preset, TrainConfig
from .detokenizer import half_folder
from .encoded import kept_embeddings
from .llama import llama
from .loop import train
from .variation import Variation
from .vit import vit

CUT = {"2x1": 0.04, "1x2": 0.02, "3x1": 0.02}  # shares of scenes of so many squares, across x down, and the whole
WINDOW = 16  # steps whose samples are sorted, see `Batches`
STANDARD = 2048  # pictures of which the scale of targets is taken
T = TypeVar("T")
CONNECTORS = ("one_layer", "deep", "wide", "flow", "deep_flow")


@dataclass(frozen=True, kw_only=True)
class MLLMVariant(Variation):
    """What one model of a comparison has otherwise than the preset says (None: as it says)."""

    n: int | None = None  # visual embeddings that are drawn
    standardise: bool = False  # targets of mean 0 and deviation 1 in each channel: pooling to fewer shrinks them
    connector: str = "one_layer"  # between hidden states and embeddings; or four layers, or one of as many parameters;
    # or flow matching in place of regression, upon one layer or four

    def __post_init__(self):
        if self.connector not in CONNECTORS:
            raise ValueError(f"connector={self.connector!r}: expected one of {', '.join(CONNECTORS)}")

    def settings(self, preset: Preset) -> dict[str, Any]:
        """Arguments of `ContinuousLVLMConfig`, but for what `new_model` knows. Raises ValueError as
        `Preset.mllm_kwargs` does."""
        told = replace(preset, n_embeddings=self.n or preset.n_embeddings).mllm_kwargs
        if "deep" in self.connector:
            told["output_resampler"] |= {"depth": 4}
        if "flow" in self.connector:
            told["output_resampler"] |= {"flow": True}
        elif self.connector == "wide":  # 4 (4 K² + K D + 8 K² + N K) parameters there, 4 W² + W (D + N + K) here
            k, d, heads = preset.vit.output_dim, preset.llm.hidden_size, preset.mllm.heads
            n = told["output_resampler"]["grid_size"] ** 2
            linear, deep = d + n + k, 4 * (12 * k * k + k * d + n * k)
            width = (math.sqrt(linear**2 + 16 * deep) - linear) / 8
            told["output_resampler"] |= {"width": 4 * heads * round(width / (4 * heads))}
        return told


def new_layout(preset: Preset, variant: MLLMVariant = MLLMVariant(), instruction: str = "{instruction}") -> Layout:
    """How samples are laid out: in pre-training texts as they are, in one of the forms of `prompts.py`."""
    tokens = preset.llm.max_position_embeddings, preset.mllm.input_tokens, variant.n or preset.n_embeddings
    return Layout(llm_tokenizer(), *tokens, base_resolution=preset.vit.image_size, instruction=instruction)


Parts = tuple[dict[str, Corpus], dict[str, float]]  # corpora, and the weight of each


def pretraining(preset: Preset, layout: Layout, runs: str | Path, split: str = "train", drawing: bool = False) -> Parts:
    """What pre-training is on. drawing: nothing but captions to draw from, as in the cells of an ablation."""
    if drawing:
        return {"narrow": squares_of(Scenes, preset, layout, runs, split, forms={"drawing": 1.0})}, {"narrow": 1.0}
    return with_files(scenes_of(Scenes, preset, layout, runs, split), layout, preset.mllm.files)


def squares_of(
    kind: Callable[..., T], preset: Preset, layout: Layout, runs: str | Path, split: str, each: int = 1, **options: Any
) -> T:
    """A corpus of pictures of one square, an entry for each scene that the preset has in a split, or for every `each`
    of them."""
    count = preset.data.train_scenes if split == "train" else preset.data.validation_scenes
    return kind(layout, max(1, count // each), (preset.image_size,) * 2, split, project_path(runs) / "cache", **options)


def scenes_of(kind: type[Scenes], preset: Preset, layout: Layout, runs: str | Path, split: str) -> Parts:
    """Scenes of one square, and some of each of the sizes of `CUT`."""
    corpora = {"narrow": squares_of(kind, preset, layout, runs, split)}
    count = max(1, len(corpora["narrow"]) // 12)
    for name, size in zip(CUT, grid_resolutions(tuple(CUT), preset.image_size), strict=True):
        corpora[name] = kind(layout, count, size, split, project_path(runs) / "cache")
    return corpora, {"narrow": 1 - sum(CUT.values())} | CUT


def with_files(parts: Parts, layout: Layout, files: Mapping[str, float], question: str = READING) -> Parts:
    """Own files added, with the shares that they are given; all others have so much less. question: see `Files`."""
    left = 1 - sum(files.values())
    corpora, weights = dict(parts[0]), {name: left * weight for name, weight in parts[1].items()}
    for path, share in files.items():
        corpora[path], weights[path] = Files(layout, project_path(path), question), share
    return corpora, weights


def new_model(
    preset: Preset,
    layout: Layout,
    seed: int,
    llama_folder: Path | None = None,
    variant: MLLMVariant = MLLMVariant(),
    **settings: Any,
) -> ContinuousLVLM:
    """An untrained model with LoRA around the language model in a folder, or around an untrained one. Everything but
    the output resampler starts the same for all variants of a seed. settings: more of `ContinuousLVLMConfig`."""
    ids = layout.tokenizer.convert_tokens_to_ids

    def made(variant: MLLMVariant) -> ContinuousLVLM:
        torch.manual_seed(seed)
        told = variant.settings(preset) | {"boi_token_id": ids("<img>"), "eoi_token_id": ids("</img>")} | settings
        tokens, n = ids(list(IMAGE_TOKENS)), layout.output_tokens
        told |= {"image_token_ids": tokens[:n], "unused_token_ids": tokens[n:]}
        if llama_folder is None:
            return ContinuousLVLM(ContinuousLVLMConfig(**told))
        return ContinuousLVLM.from_llm(llama_folder, **{key: value for key, value in told.items() if key != "llm"})

    model, shared = made(variant), made(MLLMVariant()).state_dict()
    model.load_state_dict({k: v for k, v in shared.items() if not k.startswith("output_resampler.")}, strict=False)
    torch.manual_seed(seed)
    return model.add_lora(**preset.lora_kwargs)


class Batches:
    """Batches of a mixture, with the visual embeddings of all pictures, which are computed once.

    Of the samples of `WINDOW` steps, those with three squares or more are sorted by their number, and the others left
    in their order, so that few steps have wide pictures, and all others little padding. Processes share out a step:
    together they see what one alone would.
    """

    def __init__(
        self,
        parts: Parts,
        layout: Layout,
        tower: VisionTransformerWithAttnPool,
        vit_id: str,
        runs: str | Path,
        seed: int = 0,
        split: str = "train",
    ):
        corpora, weights = parts
        self.mixture, self.pad = Mixture(corpora, weights, seed), layout.tokenizer.pad_token_id
        self._window = lru_cache(maxsize=1)(self._sorted)
        self.tables = {}  # by corpus [P, T, K]
        for name, corpus in corpora.items():
            called = f"{split}-" + re.sub(r"\W", "_", name)
            self.tables[name] = kept_embeddings(tower, vit_id, called, corpus.squares, tower.config["n_queries"], runs)

    def scale(self, n: int) -> dict[str, list[float]]:
        """Mean and deviation of each channel of embeddings pooled to `n`, as `ContinuousLVLMConfig` takes them."""
        pooled = pool_embeddings(torch.from_numpy(self.tables["narrow"][:STANDARD].astype(np.float32)), n).flatten(0, 1)
        return {"target_mean": pooled.mean(0).tolist(), "target_std": pooled.std(0).tolist()}

    def at(self, step: int, size: int) -> dict[str, Tensor | None]:
        """Arguments of `ContinuousLVLM.forward`, padded to the longest: this process's part of `size` samples."""
        team, (window, place) = processes(), divmod(step, WINDOW)
        made = self._window(window, size)[place][team.process_index :: team.num_processes]
        batch = collate([sample for _, sample, _ in made], self.pad)
        embeds = np.concatenate([self.tables[name][list(rows)] for name, _, rows in made])
        return batch | {"image_embeds": torch.from_numpy(embeds).float()}

    def _sorted(self, window: int, size: int) -> list[list[tuple[str, Sample, Sequence[int]]]]:
        """The samples of each of the steps of a window, `size` of all processes together."""
        numbers = range(window * WINDOW * size, (window + 1) * WINDOW * size)
        made = sorted(map(self.mixture.sample, numbers), key=lambda one: max(2, len(one[2])))
        order = np.random.default_rng([self.mixture.seed, window]).permutation(WINDOW)
        return [made[i * size : (i + 1) * size] for i in order]


def balanced_loss(model: ContinuousLVLM, batch: dict[str, Tensor | None]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch such that its mean over processes is that of all their samples together: each process counts
    by its share of the labels, and of the pictures that are drawn. Logged are the parts, likewise of all."""
    out = model(**batch)
    counts = torch.stack([(batch["labels"][:, 1:] != IGNORED).sum(), batch["embeds_gen_mask"].sum()]).float()
    lm_share, rec_share = counts / reduce(counts, "mean").clamp(min=1e-6)  # all 1 in a process alone, or 0 of nothing
    parts = {"lm": lm_share * out.lm_loss, "rec": rec_share * out.rec_loss}
    loss = model.config.lm_loss_scale * parts["lm"] + model.config.rec_loss_scale * parts["rec"]
    return loss, {name: reduce(part.detach().clone(), "mean") for name, part in parts.items()}


def train_mllm(
    model: ContinuousLVLM,
    batches: Batches,
    config: TrainConfig,
    seed: int,
    folder: Path,
    half: Path | None = None,
    title: str = "multimodal language model",
) -> None:
    """Trains what of `model` is to be trained; `folder` gets training.json and the checkpoint, and `half` the weights
    after half of the steps."""

    def batch_at(step: int, share: int, generator: torch.Generator) -> dict[str, Tensor | None]:
        return batches.at(step, config.batch_size)

    def loss_of(model: nn.Module, batch: dict[str, Tensor | None], generator: torch.Generator) -> tuple[Tensor, dict]:
        return balanced_loss(model, batch)

    visits: dict[int, Callable[[], None]] = {}
    if half:
        visits[config.steps // 2] = lambda: model.save_pretrained(half)
    about = {"seed": seed, "title": title, "visits": visits}
    train(model, batch_at, loss_of, config, folder, **about).save(folder / "training.json")


@torch.no_grad()
def validation_loss(model: ContinuousLVLM, batches: Batches, steps: int = 8, size: int = 32) -> float:
    """The training's loss on other samples, which are the same for every model, as is the noise of flow matching."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return float(np.mean([model(**batches.at(step, size)).loss.item() for step in range(steps)]))


def mllm(
    preset: Preset,
    seed: int = 0,
    retrain: bool = False,
    runs: str | Path = "runs",
    variant: MLLMVariant = MLLMVariant(),
    cell: str | None = None,
    config: TrainConfig | None = None,
) -> Path:
    """Trains LoRA, both resamplers, token embeddings and head, position vectors and norms; returns the folder, which
    holds model and tokenizer. variant, cell, config: as in `training.detokenizer.stage1`; cells learn to draw alone,
    without dropout.

    Raises ValueError for a preset without `training.mllm`, and as `Preset.mllm_kwargs` does.
    """
    if (config := config or preset.training.mllm) is None:
        raise ValueError(f"preset {preset.name} has no `training.mllm`; give its entries")
    if cell is not None:  # it costs a quarter of a step, and cells are too short to learn anything by heart
        preset = replace(preset, mllm=replace(preset.mllm, lora_dropout=0.0))
    settings, config = variant.settings(preset), variant.adjusted(config)
    upstream = [stage(preset, seed if cell is None else 0, runs=runs) for stage in (vit, llama)]

    def build(folder: Path) -> None:
        layout, tower = new_layout(preset, variant), VisionTransformerWithAttnPool.from_pretrained(upstream[0])
        parts = pretraining(preset, layout, runs, drawing=cell is not None)
        batches = Batches(parts, layout, tower, read_manifest(upstream[0])["id"], runs, seed)
        scale = batches.scale(layout.output_tokens) if variant.standardise else {}
        model = new_model(preset, layout, seed, upstream[1], variant, **scale)
        train_mllm(model, batches, config, seed, folder, half=cell and half_folder(preset, cell, seed, runs))
        model.to("cpu").save_pretrained(folder)
        layout.tokenizer.save_pretrained(folder)

    recipe = {"mllm": preset.mllm.recipe, "output_resampler": settings["output_resampler"], "training": config.recipe}
    recipe |= {"drawn": DRAWN, "scenes": preset.data.train_scenes}
    recipe |= {"standardise": True} if variant.standardise else {}
    if cell is None:
        recipe |= {"forms": FORMS, "turns": TURNS, "cut": CUT, "uncut": UNCUT}
        recipe["files"] = files_recipe(preset.mllm.files)
    about = {"preset": preset.name, "seed": seed, "config": recipe, "upstream": upstream}
    return ensure(cell or "mllm", build, **about, retrain=retrain, runs=runs)


def files_recipe(files: Mapping[str, float]) -> dict[str, tuple[float, str]]:
    """By path the share of own files, and a hash of their lines and tars; not of the pictures that lines name."""
    told = {}
    for path, share in files.items():
        content = b"".join(file.read_bytes() for file in data_files(project_path(path)))
        told[path] = share, hashlib.sha256(content).hexdigest()[:12]
    return told
