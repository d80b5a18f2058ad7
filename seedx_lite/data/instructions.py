"""What the language model is tuned on to follow instructions: dialogues about scenes of the world, and edits.

The forms of a turn are in `CHAT`, their wordings in `REQUESTS`; answers have one wording each, so that they can be
checked. All of it is said in the words that the language model knows.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seedx_lite.world.edits import sample_chain, sample_edit
from seedx_lite.world.language import (
    EDIT_TEMPLATES,
    PLACE_PHRASES,
    Choices,
    box_to_tokens,
    caption,
    full_caption,
    grounded_description,
    noun_phrase,
    references,
    with_article,
)
from seedx_lite.world.questions import questions, varied
from seedx_lite.world.scene import COLOURS, HELD_OUT, KINDS, PLACES, POSES, Scene, Thing
from .corpora import DRAWN, Scenes, pick
from .drawn import draw_chains
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
MOST_TURNS, EARLY = 3, 0.5
ABSENT_EDITS = 0.05  # share of edits whose instruction names nothing in the picture


class Dialogues(Scenes):
    """Scenes as in `Scenes`, each in a dialogue of one to `MOST_TURNS` turns. The picture is shown with the first turn
    (`EARLY` of the dialogues), or with the first that needs it; what is drawn are other scenes."""

    forms = CHAT

    def sample(self, index: int, rng: np.random.Generator) -> tuple[Sample, Sequence[int]]:
        scene, (layout, rows) = self.scene(index), self.view(index, rng)
        turns, read, drawn, early = list[Turn](), list[int](), list[int](), rng.random() < EARLY
        for _ in range(int(rng.integers(1, MOST_TURNS + 1))):
            form = pick(self.shares, rng)
            if form == "drawing":
                other = int(rng.integers(len(self)))
                turn = drawing_turn(self.scene(other), rng)
                drawn += self.rows(other)
            else:
                turn = reading_turn(form, scene, rng)
            if not read and (early or form != "drawing"):
                turn, read = turn._replace(shown=(self.size,)), rows
            turns.append(turn)
        return layout.dialogue(turns), [*read, *drawn]


def reading_turn(form: str, scene: Scene, rng: np.random.Generator) -> Turn:
    """A request about a scene and its answer, without the picture. form: one of `CHAT` but `drawing`; in a scene where
    nothing can be told from the rest, what is not there is asked for. Raises ValueError for another form."""
    choose = Choices(rng)
    if form == "describe":
        return Turn(choose.pick(REQUESTS[form]), full_caption(scene, rng))
    if form == "ground":
        return Turn(choose.pick(REQUESTS[form]), grounded_description(scene, rng))
    if form == "question":
        [asked] = varied(questions(scene), 1, rng)
        return Turn(asked.text, asked.answer)
    if form not in ("find", "find absent"):
        raise ValueError(f"reading_turn: form is one of {', '.join(CHAT)}, but not drawing; got {form!r}")
    wording = choose.pick(REQUESTS["find"])
    named = [(thing, phrase) for thing in scene.things for phrase in references(scene, thing)]
    if form == "find absent" or not named:
        missing = _named(_missing(scene, choose), article="the")
        return Turn(wording.format(phrase=missing), ABSENT.format(thing=missing))
    thing, phrase = choose.pick(named)
    return Turn(wording.format(phrase=phrase), f"{phrase} [[ {box_to_tokens(scene.box(thing))} ]]")


def drawing_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """A request to draw a scene, told as in pre-training, and the answer with its picture."""
    told = caption(scene, pick(DRAWN, rng), rng)
    return Turn(Choices(rng).pick(REQUESTS["drawing"]).format(caption=told), HERE, drawn=(scene.width, scene.height))


def _missing(scene: Scene, choose: Choices) -> tuple[str, str]:
    """Kind and colour of a thing of a kind that is not there, or, as often, in a colour that none of its kind has
    there; no held-out combination."""
    there = {(thing.kind, thing.colour) for thing in scene.things} | HELD_OUT
    present = tuple(kind for kind in KINDS if any(thing.kind == kind for thing in scene.things))
    kinds = choose.pick(filter(None, (present, tuple(kind for kind in KINDS if kind not in present))))
    return choose.pick([(k, c) for k in kinds for c in COLOURS if (k, c) not in there])


def _named(pair: tuple[str, str], article: str = "a") -> str:
    """The phrase for a thing of a kind and colour."""
    pose = POSES[0] if pair[0] == "person" else None
    return noun_phrase(Thing(*pair, 0.5, 0.9, 0.3, pose=pose), article=article)


def absent_edit(scene: Scene, rng: np.random.Generator) -> Turn:
    """An instruction that names what is not in a scene, worded as those of edits that can be done, and the answer,
    which draws nothing."""
    choose = Choices(rng)
    kind, old = _missing(scene, choose)
    missing, place = _named((kind, old), article="the"), choose.pick(PLACES)
    colour = choose.pick([one for one in COLOURS if one != old and (kind, one) not in HELD_OUT])
    new = _named(choose.pick([(k, c) for k in KINDS for c in COLOURS if k != kind and (k, c) not in HELD_OUT]))
    recolour = "recolour person" if kind == "person" else "recolour"
    template = choose.pick(EDIT_TEMPLATES[choose.pick(["remove", recolour, "replace", "move"])])
    words = {"colour": colour, "shirt": with_article(colour) + " shirt", "new": new}
    told = template.format(thing=missing, place=PLACE_PHRASES[place], place_name=place, **words)
    return Turn(told, ABSENT.format(thing=missing))


class Chains:
    """The first `count` chains of up to `length` edits: what was drawn last is shown again with the next instruction.
    Chains end early at random, so that each length comes up. cache: as of `draw_chains`."""

    length = 3

    def __init__(
        self, layout: Layout, count: int, size: tuple[int, int], split: str = "train", cache: str | Path | None = None
    ):
        self.layout, self.size, self.split = layout, size, split
        pictures = draw_chains(split, count, self.length, size, cache).pictures  # [K, L + 1, H, W, 3]
        self.squares = pictures.reshape(-1, *pictures.shape[2:])

    def __len__(self) -> int:
        return len(self.squares) // (self.length + 1)

    def sample(self, index: int, rng: np.random.Generator) -> tuple[Sample, Sequence[int]]:
        edits = sample_chain(index, self.length, self.split, size=self.size)[: int(rng.integers(1, self.length + 1))]
        rows = [index * (self.length + 1) + place for place in range(len(edits) + 1)]
        turns = [Turn(edit.instruction, HERE, (self.size,), self.size) for edit in edits]
        return self.layout.dialogue(turns), [*rows[:-1], *rows[1:]]


class Edits(Chains):
    """Chains of one edit. `ABSENT_EDITS` of the samples ask to change what is not in the picture: the answer says so,
    and draws nothing."""

    length = 1

    def sample(self, index: int, rng: np.random.Generator) -> tuple[Sample, Sequence[int]]:
        if rng.random() >= ABSENT_EDITS:
            return super().sample(index, rng)
        edit = sample_edit(index, self.split, "narrow", self.size)
        return self.layout.dialogue([absent_edit(edit.source, rng)._replace(shown=(self.size,))]), [2 * index]
