"""Questions about a scene that have exactly one right answer."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from . import language
from .language import NUMBERS, PLURALS, Choices, is_place_clear, noun_phrase, refer
from .scene import COLOURS, HELD_OUT, KINDS, Scene, Thing

TOPICS = ("colour", "count", "presence", "place", "pose", "sky", "ground", "relation", "comparison")
CLEAR_GROWTH = 1.25  # ratio of heights from which one thing is called taller
CLEAR_DEPTH = 0.1  # of the height: between the feet of two things, the lower one is then called nearer


@dataclass(frozen=True)
class Question:
    """A question with its only right answer. topic: one of `TOPICS`."""

    text: str
    answer: str
    topic: str


def questions(scene: Scene) -> tuple[Question, ...]:
    """Everything that can be asked without doubt, always the same for the same scene. Yes and no are balanced, and no
    wrong guess names a held-out combination."""
    choose = Choices(zlib.crc32(repr(scene.content).encode()))
    asked = [
        Question("what time is it?", scene.sky, "sky"),
        Question("what is the ground?", language.GROUND_NAMES[scene.ground], "ground"),
        Question("how many things are there?", NUMBERS[len(scene.things)], "count"),
    ]
    for thing in scene.from_left:
        if name := refer(scene, thing, avoid=("colour",)):
            of = "the shirt of " if thing.kind == "person" else ""
            asked.append(Question(f"what colour is {of}{name}?", thing.colour, "colour"))
        if is_place_clear(thing) and (name := refer(scene, thing, avoid=("place",))):
            asked.append(Question(f"where is {name}?", language.PLACE_PHRASES[thing.place], "place"))
        if thing.pose and (name := refer(scene, thing, avoid=("pose",))):
            asked.append(Question(f"what is {name} doing?", thing.pose, "pose"))
    asked += _about_kinds(scene, choose)
    for one, other in combinations(scene.from_left, 2):
        asked += _about_two(scene, one, other, choose)
    return tuple(dict.fromkeys(asked))


def varied(asked: Sequence[Question], count: int, rng: np.random.Generator) -> list[Question]:
    """Up to `count` of some questions, of different topics: first the topics are drawn, then a question of each, so
    that the many about presence leave room for the few about poses."""
    topics = sorted({question.topic for question in asked})
    drawn = [topics[place] for place in rng.permutation(len(topics))[:count]]
    by_topic = [[question for question in asked if question.topic == topic] for topic in drawn]
    return [some[int(rng.integers(len(some)))] for some in by_topic]


def _about_kinds(scene: Scene, choose: Choices) -> Iterable[Question]:
    counts = {kind: sum(thing.kind == kind for thing in scene.things) for kind in KINDS}
    present, absent = [k for k in KINDS if counts[k]], [k for k in KINDS if not counts[k]]
    for kind in present:
        yield Question(f"how many {PLURALS[kind]} are there?", NUMBERS[counts[kind]], "count")
        shown = {thing.colour: thing for thing in scene.from_left if thing.kind == kind}
        wrong = [colour for colour in COLOURS if colour not in shown and (kind, colour) not in HELD_OUT]
        for thing in list(shown.values())[: len(wrong)]:
            colour = wrong.pop(choose.pick(range(len(wrong))))
            yield Question(f"is there {noun_phrase(thing)}?", "yes", "presence")
            yield Question(f"is there {noun_phrase(replace(thing, colour=colour))}?", "no", "presence")
        if absent:
            other = choose.pick(absent)
            absent.remove(other)
            yield Question(f"is there a {kind}?", "yes", "presence")
            yield Question(f"is there a {other}?", "no", "presence")
            yield Question(f"how many {PLURALS[other]} are there?", NUMBERS[0], "count")


def _about_two(scene: Scene, one: Thing, other: Thing, choose: Choices) -> Iterable[Question]:
    """Relations and comparisons of two things, `one` the further left."""
    first, second = refer(scene, one), refer(scene, other)
    if not (first and second):
        return
    if other.x - one.x >= language.CLEAR_STEP:
        side, answers = choose.pick([("left", ("yes", "no")), ("right", ("no", "yes"))])
        yield Question(f"is {first} to the {side} of {second}?", answers[0], "relation")
        yield Question(f"is {second} to the {side} of {first}?", answers[1], "relation")
    names = choose.pick([(first, second), (second, first)])
    if max(one.size, other.size) >= CLEAR_GROWTH * min(one.size, other.size):
        taller = first if one.size > other.size else second
        yield Question(f"which is taller, {names[0]} or {names[1]}?", taller, "comparison")
    if abs(one.y - other.y) >= CLEAR_DEPTH:
        nearer = first if one.y > other.y else second
        yield Question(f"which is nearer, {names[0]} or {names[1]}?", nearer, "comparison")
