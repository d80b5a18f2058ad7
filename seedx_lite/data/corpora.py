"""What the multimodal language model is trained on: scenes of the world, files in the official formats, and mixtures.

A corpus is a number of entries. Each becomes a `Sample` in one of several ways, at random by a generator; its pictures
are rows of `squares`, uint8 [P, S, S, 3]: the sub-images of all pictures of the corpus, at the vision encoder's size.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image

from seedx_lite.world.language import caption, detections, full_caption, grounded_description
from seedx_lite.world.questions import questions, varied
from seedx_lite.world.scene import Scene, sample_scene
from .captions import CaptionPair
from .check import FORMATS, data_files, detect
from .conversations import Conversation
from .drawn import draw_scenes
from .edits import EditPair, check_sizes
from .formats import Problem, report
from .layout import Layout, Sample
from .pictures import open_picture
from .prompts import LOCATE, READING

FORMS = {"caption": 0.15, "grounded": 0.1, "questions": 0.3, "detection": 0.15, "drawing": 0.3}  # shares of samples
TURNS = {"questions": 8, "detection": 3}  # most in one sample, and half of it at least: a picture takes many tokens
DRAWN = {"full": 0.7, "partial": 0.2, "one_thing": 0.1}  # of the captions that are drawn from
UNCUT = 1 / 3  # of the scenes that are not of one square: shown as a whole in one square, and nothing else
BLOCK = 100  # samples in which each corpus of a mixture has its share
MOST_LOST = 0.05  # share of a corpus that may be unusable


class Corpus(Protocol):
    """See the module. `sample` gives the sample of an entry and the rows of its pictures."""

    squares: np.ndarray

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> tuple[Sample, Sequence[int]]: ...


class Scenes:
    """The first `count` scenes of a split, of one size in px, in the looks of the narrow mix; cache: as of
    `draw_scenes`. forms: shares of what is made of them. Scenes that are not of one square are read, but not drawn:
    de-tokenizers draw squares."""

    forms: ClassVar[Mapping[str, float]] = FORMS

    def __init__(
        self,
        layout: Layout,
        count: int,
        size: tuple[int, int],
        split: str = "train",
        cache: str | Path | None = None,
        forms: Mapping[str, float] | None = None,
    ):
        self.layout, self.whole, self.split, self.size = layout, replace(layout, grids=("1x1",)), split, size
        self.squares = draw_scenes(split, count, "narrow", size, cache=cache).pictures
        self.each = len(layout.squares(Image.new("RGB", size)))
        if self.each > 1:
            self.squares = _stacked([Image.fromarray(picture) for picture in self.squares], layout)
        self.shares = {
            form: share for form, share in (forms or self.forms).items() if self.each == 1 or form != "drawing"
        }
        if not self.shares:
            fits = f"{layout.base_resolution} px a side, as the vision encoder reads them: set `image_size` so"
            raise ValueError(f"pictures of {size[0]}x{size[1]} px cannot be drawn; expected {fits}")

    def __len__(self) -> int:
        return len(self.squares) // self.each

    def sample(self, index: int, rng: np.random.Generator) -> tuple[Sample, Sequence[int]]:
        layout, rows = self.view(index, rng)
        return scene_sample(layout, pick(self.shares, rng), self.scene(index), rng), rows

    def scene(self, index: int) -> Scene:
        """What an entry shows."""
        return sample_scene(index, self.split, "narrow", self.size)

    def view(self, index: int, rng: np.random.Generator) -> tuple[Layout, list[int]]:
        """How its picture is laid out, in squares or in one alone, and the rows that it has then."""
        if self.each > 1 and rng.random() < UNCUT:
            return self.whole, self.rows(index)[-1:]
        return self.layout, self.rows(index)

    def rows(self, index: int) -> list[int]:
        """The rows of its picture."""
        return list(range(index * self.each, (index + 1) * self.each))


def scene_sample(layout: Layout, form: str, scene: Scene, rng: np.random.Generator) -> Sample:
    """A sample of pre-training about one scene; form: one of `FORMS`. A scene without a thing that can be told from the
    others is asked about instead of detected in. Raises ValueError for another form."""
    size = (scene.width, scene.height)
    if form == "caption":
        return layout.caption(full_caption(scene, rng), size)
    if form == "drawing":
        return layout.caption(caption(scene, pick(DRAWN, rng), rng), size, image_first=False)
    if form == "grounded":
        return layout.conversation([READING.format(question=LOCATE), grounded_description(scene, rng)], size)
    if form not in FORMS:
        raise ValueError(f"scene_sample: form is one of {', '.join(FORMS)}, got {form!r}")
    pairs = detections(scene, rng) if form == "detection" else ()
    most = TURNS["detection" if pairs else "questions"]
    count = int(rng.integers((most + 1) // 2, most + 1))
    turns = [pairs[place] for place in rng.permutation(len(pairs))[:count]]
    if not pairs:
        asked = varied(questions(scene), count, rng)
        turns = [(READING.format(question=one.text), one.answer) for one in asked]
    return layout.conversation(sum(turns, ()), size)


class Files:
    """All samples of a file, or of all `*.jsonl` and `*.tar` below a folder, in any of the three official formats.

    Everything is opened and laid out once, before training: what cannot be used is in `problems`, each with its place
    and reason. question: the form of the questions of conversations. images: see `conversations.py`. Raises ValueError
    if that is more than a share `most_lost` of the whole, and if nothing is left.
    """

    def __init__(
        self,
        layout: Layout,
        path: str | Path,
        question: str = READING,
        images: str | Path | None = None,
        most_lost: float = MOST_LOST,
    ):
        self.layout, self.question, self.problems = layout, question, list[Problem]()
        self.entries, squares, count = [], [], 0
        for file in data_files(path):
            form = detect(file)
            if form is None:
                report(self.problems, file, "none of the three formats")
                continue
            where = {} if form == "captions" else {"images": images}
            for entry in FORMATS[form].read(file, problems=self.problems, **where):
                given = [value for value in vars(entry).values() if isinstance(value, Path | bytes)]
                try:
                    pictures = [open_picture(value, name="its picture") for value in given]
                    sizes = [picture.size for picture in pictures]
                    if isinstance(entry, EditPair):
                        check_sizes(*sizes)
                    for image_first in (True, False):
                        self._laid_out(entry, sizes, image_first)
                    cut = _stacked(pictures, layout)
                except (ValueError, OSError) as reason:
                    report(self.problems, entry.place, reason)
                    continue
                self.entries.append((entry, sizes, range(count, count + len(cut))))
                count += len(cut)
                squares.append(cut)
        lost, whole = len(self.problems), len(self.problems) + len(self.entries)
        told = f"{path}: {lost} of {whole} samples cannot be used{''.join(f'; {p}' for p in self.problems[:3])}"
        if lost > most_lost * whole or not self.entries:
            raise ValueError(f"{told}; expected {most_lost:.0%} at most. `python -m seedx_lite data check` lists all")
        if lost:
            print(told)
        self.squares = np.concatenate(squares)

    def __len__(self) -> int:
        return len(self.entries)

    def sample(self, index: int, rng: np.random.Generator) -> tuple[Sample, Sequence[int]]:
        entry, sizes, rows = self.entries[index]
        return self._laid_out(entry, sizes, bool(rng.integers(2))), rows

    def _laid_out(
        self, entry: Conversation | CaptionPair | EditPair, sizes: Sequence[tuple[int, int]], image_first: bool
    ) -> Sample:
        if isinstance(entry, CaptionPair):
            return self.layout.caption(entry.caption, *sizes, image_first=image_first)
        if isinstance(entry, EditPair):
            return self.layout.edit(entry.instruction, *sizes, entry.response or "", image_first)
        asked = [self.question.format(question=turn) for turn in entry.data[::2]]
        turns = [turn for pair in zip(asked, entry.data[1::2], strict=True) for turn in pair]
        return self.layout.conversation(turns, *sizes)  # the picture first, as an assistant's prompts show it


class Mixture:
    """Samples of several corpora in shares by weight, in an order that depends on the seed.

    Sample number k is a function of the seed and k: so a run can go on anywhere, and any number of processes can share
    it out. Each corpus has its share in every `BLOCK` samples, and its entries come one epoch after the other, each
    epoch in another order. Raises ValueError for a weight too small to come up, and for names that do not match.
    """

    def __init__(self, corpora: Mapping[str, Corpus], weights: Mapping[str, float], seed: int = 0):
        if not corpora or corpora.keys() != weights.keys():
            raise ValueError(f"weights for {sorted(weights)}, corpora {sorted(corpora)}; give one weight for each")
        self.corpora, self.seed, self.names = dict(corpora), seed, list(corpora)
        shares = np.array([weights[name] for name in self.names], dtype=float)
        exact = BLOCK * shares / shares.sum()
        self.counts = np.floor(exact).astype(int)
        self.counts[np.argsort(self.counts - exact, kind="stable")[: BLOCK - self.counts.sum()]] += 1
        if self.counts.min() < 1:
            raise ValueError(f"weights {dict(weights)}: each expected to be at least 1/{BLOCK} of their sum")
        self._shuffled = lru_cache(maxsize=4 * len(self.names) + 4)(self._permutation)

    def sample(self, number: int) -> tuple[str, Sample, Sequence[int]]:
        """Sample `number`: its corpus, how it is laid out, and the rows of its pictures."""
        block, place = divmod(number, BLOCK)
        slots = self._shuffled("", block, BLOCK)  # of this block, those of the first corpus being 0, 1, …
        which = int(np.searchsorted(self.counts.cumsum(), slots[place], side="right"))
        name, before = self.names[which], int(self.counts[:which].sum())
        epoch, turn = divmod(block * int(self.counts[which]) + int(slots[place]) - before, len(self.corpora[name]))
        index = int(self._shuffled(name, epoch, len(self.corpora[name]))[turn])
        return name, *self.corpora[name].sample(index, np.random.default_rng([self.seed, number]))

    def _permutation(self, name: str, round_: int, count: int) -> np.ndarray:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode()), round_]).permutation(count)


def pick(shares: Mapping[str, float], rng: np.random.Generator) -> str:
    """One of the names, in these shares."""
    weights = np.array(list(shares.values()))
    return list(shares)[rng.choice(len(weights), p=weights / weights.sum())]


def _stacked(pictures: Sequence[Image.Image], layout: Layout) -> np.ndarray:
    """The squares of all pictures in order, uint8 [P, S, S, 3]."""
    side = layout.base_resolution
    squares = [np.asarray(square) for picture in pictures for square in layout.squares(picture)]
    return np.stack(squares) if squares else np.zeros((0, side, side, 3), np.uint8)
