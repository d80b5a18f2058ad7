"""What the language model is tuned on to follow instructions: dialogues about scenes of the world, and edits.

The forms of a turn are in `CHAT`, their wordings in `REQUESTS`; answers have one wording each, so that they can be
checked. All of it is said in the words that the language model knows.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from seedx_lite.world.edits import sample_chain, sample_edit
from seedx_lite.world.language import (
    EDIT_TEMPLATES,
    Choices,
    box_to_tokens,
    caption,
    full_caption,
    grounded_description,
    noun_phrase,
    references,
)
from seedx_lite.world.questions import questions
from seedx_lite.world.scene import COLOURS, HELD_OUT, Scene
from .corpora import DRAWN, Scenes, pick
from .drawn import draw_chains, draw_edits
from .layout import Layout, Sample, Turn
from .prompts import LOCATE

# Shares of turns
CHAT = {"describe": 0.15, "ground": 0.1, "question": 0.35, "find": 0.15, "find absent": 0.05, "drawing": 0.2}
REQUESTS = {
    "describe": ("describe the picture.", "what do you see?", "please describe this image."),
    "ground": (LOCATE, "find everything.", "detect all things."),
    "find": ("find {phrase}.", "detect {phrase}.", "can you find {phrase}?"),
    "drawing": (
        "draw {caption}.",
        "please paint {caption}.",
        "show me a picture of {caption}.",
        "can you draw {caption}?",
    ),
}
HERE, ABSENT = "here it is.", "{thing} is not here."
MOST_TURNS = 3
ABSENT_EDITS = 0.05  # share of edits whose instruction names nothing in the picture


class Dialogues(Scenes):
    """Scenes as in `Scenes`, each in a dialogue of one to `MOST_TURNS` turns. The picture is shown with the first turn
    that needs it; what is drawn are other scenes."""

    forms = CHAT

    def sample(self, index: int, rng: np.random.Generator) -> tuple[Sample, Sequence[int]]:
        scene, turns, read, drawn = self.scene(index), list[Turn](), list[int](), list[int]()
        for _ in range(int(rng.integers(1, MOST_TURNS + 1))):
            form = pick(self.shares, rng)
            if form == "drawing":
                other = int(rng.integers(len(self)))
                turns.append(drawing_turn(self.scene(other), rng))
                drawn += self.rows(other)
            else:
                turns.append(reading_turn(form, scene, rng)._replace(shown=() if read else (self.size,)))
                read = self.rows(index)
        return self.layout.dialogue(turns), [*read, *drawn]


def reading_turn(form: str, scene: Scene, rng: np.random.Generator) -> Turn:
    """A request about a scene and its answer, without the picture. form: one of `CHAT` but `drawing`; in a scene where
    nothing can be told from the rest, what is not there is asked for. Raises ValueError for another form."""
    choose = Choices(rng)
    if form == "describe":
        return Turn(choose.pick(REQUESTS[form]), full_caption(scene, rng))
    if form == "ground":
        return Turn(choose.pick(REQUESTS[form]), grounded_description(scene, rng))
    if form == "question":
        asked = choose.pick(questions(scene))
        return Turn(asked.text, asked.answer)
    if form not in ("find", "find absent"):
        raise ValueError(f"reading_turn: form is one of {', '.join(CHAT)}, but not drawing; got {form!r}")
    wording = choose.pick(REQUESTS["find"])
    named = [(thing, phrase) for thing in scene.things for phrase in references(scene, thing)]
    if form == "find absent" or not named:
        missing = _missing(scene, choose)
        return Turn(wording.format(phrase=missing), ABSENT.format(thing=missing))
    thing, phrase = choose.pick(named)
    return Turn(wording.format(phrase=phrase), f"{phrase} [[ {box_to_tokens(scene.box(thing))} ]]")


def drawing_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """A request to draw a scene, told as in pre-training, and the answer with its picture."""
    told = caption(scene, pick(DRAWN, rng), rng)
    return Turn(Choices(rng).pick(REQUESTS["drawing"]).format(caption=told), HERE, drawn=(scene.width, scene.height))


def _missing(scene: Scene, choose: Choices) -> str:
    """A phrase for a thing of the scene in a colour that none of its kind has there; no held-out combination."""
    there = {(thing.kind, thing.colour) for thing in scene.things} | HELD_OUT
    others = [replace(t, colour=c) for t in scene.things for c in COLOURS if (t.kind, c) not in there]
    return noun_phrase(choose.pick(others), article="the")


class Edits:
    """The first `count` edits of a split with their pictures; cache: as of `draw_edits`. `ABSENT_EDITS` of the samples
    ask to change what is not in the picture: the answer says so, and draws nothing."""

    def __init__(
        self, layout: Layout, count: int, size: tuple[int, int], split: str = "train", cache: str | Path | None = None
    ):
        self.layout, self.size, self.split = layout, size, split
        drawn = draw_edits(split, count, "narrow", size, cache)
        self.squares = np.stack([drawn.source, drawn.target], axis=1).reshape(-1, *drawn.source.shape[1:])

    def __len__(self) -> int:
        return len(self.squares) // 2

    def sample(self, index: int, rng: np.random.Generator) -> tuple[Sample, Sequence[int]]:
        edit, shown = sample_edit(index, self.split, "narrow", self.size), (self.size,)
        if rng.random() >= ABSENT_EDITS:
            return self.layout.dialogue([Turn(edit.instruction, HERE, shown, self.size)]), [2 * index, 2 * index + 1]
        choose = Choices(rng)
        wording = choose.pick(EDIT_TEMPLATES["remove"] + EDIT_TEMPLATES["recolour"])
        missing = _missing(edit.source, choose)
        asked = wording.format(thing=missing, colour=choose.pick(COLOURS))
        return self.layout.dialogue([Turn(asked, ABSENT.format(thing=missing), shown)]), [2 * index]


class Chains:
    """The first `count` chains of up to `length` edits: what was drawn last is shown again with the next instruction.
    Chains end early at random, so that each length comes up. cache: as of `draw_chains`."""

    def __init__(
        self,
        layout: Layout,
        count: int,
        size: tuple[int, int],
        split: str = "train",
        cache: str | Path | None = None,
        length: int = 3,
    ):
        self.layout, self.size, self.split, self.length = layout, size, split, length
        pictures = draw_chains(split, count, length, size, cache).pictures  # [K, L + 1, H, W, 3]
        self.squares = pictures.reshape(-1, *pictures.shape[2:])

    def __len__(self) -> int:
        return len(self.squares) // (self.length + 1)

    def sample(self, index: int, rng: np.random.Generator) -> tuple[Sample, Sequence[int]]:
        edits = sample_chain(index, self.length, self.split, size=self.size)[: int(rng.integers(1, self.length + 1))]
        rows = [index * (self.length + 1) + place for place in range(len(edits) + 1)]
        turns = [Turn(edit.instruction, HERE, (self.size,), self.size) for edit in edits]
        return self.layout.dialogue(turns), [*rows[:-1], *rows[1:]]
