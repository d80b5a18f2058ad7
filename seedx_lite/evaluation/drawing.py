"""Drawing from captions, measured alike for every language model, connector and de-tokenizer (claims C, D and E).

Pictures are judged by the scene reader, by how much of what there is they reach (coverage), and by how far pictures of
one prompt differ (spread). What captions leave open is beside what the world itself does with it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seedx_lite.data.drawn import scenes
from seedx_lite.models.autoencoder import round_trips
from seedx_lite.models.precision import quick_sampling
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.models.vit import embed_pictures
from seedx_lite.pipelines.assistant import SeedX
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline
from seedx_lite.pipelines.text_to_image import noise
from seedx_lite.presets import Preset
from seedx_lite.world.captions import read_caption
from seedx_lite.world.draw import render
from seedx_lite.world.language import canonical_caption, one_thing_caption
from seedx_lite.world.scene import Scene, is_clear, sample_scene, sample_thing
from .diversity import coverage, vendi
from .scene_reader import compare_all, picture_features, read_scenes, summarise
from .statistics import bootstrap, interval
from .variants import GUIDANCE, STEPS

SETS = {"test": ("test", 512), "composition": ("composition", 256)}  # split, number of scenes
PROMPTS, EACH = 32, 8  # captions of one thing, and pictures of each
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0)
NEIGHBOURS = 1  # of `coverage`: with five, half of the pictures could be copies of the others, and hardly lower it
AVERAGED, ALIKE = (1, 4, 16, 64), 64  # scenes of one content that are averaged; contents

Told = dict[str, dict[str, float]]


def alike(scene: Scene, rng: np.random.Generator) -> Scene:
    """Another scene of the narrow mix with the same content: what no full caption tells is drawn anew."""
    size = (scene.width, scene.height)
    while True:
        look = sample_scene(int(rng.integers(10_000)), "train", "narrow", size)
        made = replace(look, things=(), sky=scene.sky, ground=scene.ground)
        for wanted in scene.from_left:
            for _ in range(400):
                zoom = float(rng.uniform(0.95, 1.05))
                thing = sample_thing(rng, wanted.kind, wanted.colour, made, zoom, len(scene.things))
                more = replace(made, things=(*made.things, thing))
                if thing.content == wanted.content and is_clear(more):
                    made = more
                    break
        if made.content == scene.content:
            return replace(made, things=made.from_left)


def same_content(scene: Scene, count: int, seed: int) -> list[np.ndarray]:
    """Pictures of a scene and of others that are `alike`, `count` in all."""
    rng = np.random.default_rng([seed, 7])
    return [np.asarray(render(one)) for one in (scene, *(alike(scene, rng) for _ in range(count - 1)))]


class DrawingExaminer:
    """Measures drawing with the de-tokenizers of one preset. decoders: by N, pipelines that draw N embeddings. counts:
    of scenes, where they should be fewer than in `SETS`, and of `prompts`."""

    def __init__(
        self,
        preset: Preset,
        decoders: Mapping[int, DetokenizerPipeline],
        reader: SceneReader,
        counts: Mapping[str, int] | None = None,
    ):
        self.size, self.decoders, self.reader = preset.size, decoders, reader
        most = preset.data.test_scenes
        self.counts = {name: min(many, most) for name, (_, many) in SETS.items()}
        self.counts |= {"prompts": min(PROMPTS, most // 4), "alike": min(ALIKE, most // 4)}  # many pictures for each
        self.counts |= counts or {}
        self.scenes = {n: scenes(s, self.counts[n], "narrow", self.size) for n, (s, _) in SETS.items()}
        self.pictures = {name: [np.asarray(render(one)) for one in them] for name, them in self.scenes.items()}
        self.captions = {name: [canonical_caption(one) for one in them] for name, them in self.scenes.items()}
        told = scenes("test", self.counts["prompts"], "narrow", self.size)
        self.prompts = [one_thing_caption(scene, np.random.default_rng(k)) for k, scene in enumerate(told)]
        self._real: dict[tuple[str, int], Tensor] = {}

    def real(self, name: str, n: int) -> Tensor:
        """The visual embeddings of the scenes of a set, [B, N, K]."""
        if (name, n) not in self._real:
            self._real[name, n] = embed_pictures(self.decoders[n].vit, np.stack(self.pictures[name]), n)
        return self._real[name, n]

    @torch.no_grad()
    def draw(
        self, pipe: DetokenizerPipeline, embeddings: Tensor, seed: int, guidance: float = GUIDANCE
    ) -> list[np.ndarray]:
        """Pictures of embeddings [B, N, K]; their noise depends on place and seed."""
        places = range(len(embeddings))
        with quick_sampling(pipe.device):
            drawn = pipe(embeddings.to(pipe.device), STEPS, guidance, noise(seed, places)).images
        return [np.asarray(picture) for picture in drawn]

    def judge(self, name: str, drawn: Sequence[np.ndarray]) -> Told:
        """Of pictures of the scenes of a set: what the scene reader says of them, `coverage` of the real pictures, and
        `vendi`, how many different ones there are in effect."""
        told = summarise(compare_all(self.scenes[name], read_scenes(self.reader, drawn), by_place=True))
        told.pop("position_error", None)  # captions tell no more of a place than its third
        real, ours = (self.features(pictures) for pictures in (self.pictures[name], drawn))
        return told | {"coverage": {"mean": coverage(real, ours, NEIGHBOURS)}, "vendi": {"mean": vendi(ours)}}

    def features(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """One unit vector for each picture, that of the reader without what all scenes have in common: else any two
        are alike, and nothing that is lost shows."""
        rest = picture_features(self.reader, pictures) - self._common
        return rest / np.linalg.norm(rest, axis=1, keepdims=True).clip(min=1e-6)

    @cached_property
    def _common(self) -> np.ndarray:
        return picture_features(self.reader, self.pictures["test"]).mean(axis=0)

    def spread(self, pictures: Sequence[Sequence[np.ndarray]]) -> dict[str, float]:
        """How many of the pictures of one prompt are different in effect, beyond the first: mean over prompts, 0 for
        copies."""
        return bootstrap([(vendi(self.features(some)) - 1, 1) for some in pictures])

    def measure(self, seedx: SeedX, seed: int, sets: Sequence[str] = (*SETS, "prompts")) -> dict[str, Any]:
        """Sets of captions, and `prompts` with the spread of their pictures, for a language model and its
        de-tokenizer."""
        n, told = len(seedx.model.config.image_token_ids), {}
        for name in (name for name in SETS if name in sets):
            ours = seedx.imagine(self.captions[name], seed)
            told[name] = self.judge(name, self.draw(seedx.detokenizer, ours, seed))
            told[name] |= judge_embeddings(ours, self.real(name, n))
        if "prompts" in sets:
            told["prompts"] = {"spread": self.spread(list(self._each_prompt(seedx, seed)))}
        return told

    def measure_decoder(self, pipe: DetokenizerPipeline, seedx: SeedX, seed: int) -> dict[str, Any]:
        """A de-tokenizer with the predictions of a language model: `sets` at the usual guidance, as `measure`; the
        `curve` over guidance; and `real`, with the embeddings of the scenes themselves."""
        ours, curve = seedx.imagine(self.captions["test"]), []
        own = SeedX(seedx.model, seedx.processor.layout, pipe)
        for guidance in GUIDANCES:
            told = self.judge("test", self.draw(pipe, ours, seed, guidance))
            prompts = {"spread": self.spread(list(self._each_prompt(own, seed, guidance)))}
            shown = {key: told[key] for key in ("f1", "coloured_f1", "coverage", "vendi")}
            curve.append({"guidance": guidance} | shown | prompts)
            if guidance == GUIDANCE:
                sets = {"test": told, "prompts": prompts}
        real = self.real("test", len(seedx.model.config.image_token_ids))
        return {"sets": sets, "curve": curve, "real": self.judge("test", self.draw(pipe, real, seed))}

    def _each_prompt(self, seedx: SeedX, seed: int, guidance: float = GUIDANCE) -> Iterator[list[np.ndarray]]:
        """The pictures of each prompt: with other noise, and other embeddings where they are drawn from noise, too."""
        times = EACH if seedx.model.flow else 1
        made = [seedx.imagine(self.prompts, EACH * seed + k) for k in range(times)]
        for place in range(len(self.prompts)):
            embeddings = torch.stack([some[place] for some in made]).repeat(EACH // times, 1, 1)
            yield self.draw(seedx.detokenizer, embeddings, 1000 * seed + place, guidance)

    def ceilings(self) -> dict[str, Told]:
        """By set: what VAE round trips reach, and under `n64` and so on the de-tokenizers with the real embeddings;
        `prompts`: the spread of training scenes that each prompt may mean."""
        told: dict[str, Any] = {}
        vae = next(iter(self.decoders.values())).vae
        for name, pictures in self.pictures.items():
            told[name] = self.judge(name, list(round_trips(vae, np.stack(pictures))))
            for n, pipe in self.decoders.items():
                told[f"{name}_n{n}"] = self.judge(name, self.draw(pipe, self.real(name, n), 0))
        return told | {"prompts": {"spread": self.spread(list(self._meant()))}}

    def _meant(self) -> Iterator[list[np.ndarray]]:
        """Pictures of training scenes that fit each prompt."""
        training = scenes("train", 200 * EACH, "narrow", self.size)
        for prompt in self.prompts:
            [(_, kind, colour, pose)] = read_caption(prompt).things
            fits = [
                scene
                for scene in training
                if any((t.kind, t.colour) == (kind, colour) and pose in (t.pose, "", None) for t in scene.things)
            ]
            if len(fits) >= EACH:
                yield [np.asarray(render(scene)) for scene in fits[:EACH]]

    def averaged(self) -> list[dict[str, Any]]:
        """The paper's reason for few embeddings, apart from any language model: a regression to what a caption leaves
        open predicts the mean. The embeddings of several scenes of one content are averaged and drawn, for each N."""
        wanted, rows = self.scenes["test"][: self.counts["alike"]], []
        meant = np.concatenate([same_content(one, max(AVERAGED), k) for k, one in enumerate(wanted)])
        for n, pipe in self.decoders.items():
            embeds = embed_pictures(pipe.vit, meant, n).unflatten(0, (len(wanted), -1))  # [contents, scenes, N, K]
            for count in AVERAGED:
                drawn = self.draw(pipe, embeds[:, :count].mean(1), 0)
                told = summarise(compare_all(wanted, read_scenes(self.reader, drawn), by_place=True))
                shown = {key: told[key] for key in ("f1", "coloured_f1", "background")}
                rows.append({"n": n, "averaged": count} | shown)
        return rows


def judge_embeddings(predicted: Tensor, real: Tensor) -> Told:
    """Predicted visual embeddings [B, N, K] against real ones: `mse`, `cosine` of the tokens, `unexplained` (squared
    error over that of the mean of the real ones), `variance` (that over scenes, over that of the real ones)."""
    error, cosine = (predicted - real).square().mean((1, 2)), F.cosine_similarity(predicted, real, dim=-1).mean(1)
    spread, own = ((x - x.mean(0)).square().mean((1, 2)).tolist() for x in (real, predicted))
    return {
        "mse": interval(error.tolist()),
        "cosine": interval(cosine.tolist()),
        "unexplained": bootstrap(list(zip(error.tolist(), spread, strict=True))),
        "variance": bootstrap(list(zip(own, spread, strict=True))),
    }
