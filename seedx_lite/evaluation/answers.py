"""Questions about scenes that every model is asked, and the shares of right answers."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from seedx_lite.data.drawn import scenes
from seedx_lite.world.questions import TOPICS, Question, questions
from seedx_lite.world.scene import Scene
from .statistics import bootstrap

FREQUENT = 1000  # training scenes from which the most frequent answers are taken
Told = dict[str, dict[str, float]]


def one_of_each(wanted: Sequence[Scene], topics: Sequence[str] = TOPICS) -> list[tuple[Question, int]]:
    """A question of each topic that a scene has one of, with the place of the scene; always the same."""
    rng, asked = np.random.default_rng(0), []
    for place, scene in enumerate(wanted):
        everything = questions(scene)
        chosen = {everything[i].topic: everything[i] for i in rng.permutation(len(everything))}
        asked += [(question, place) for topic, question in chosen.items() if topic in topics]
    return asked


def frequent_answers(asked: Sequence[tuple[Question, int]], size: tuple[int, int]) -> list[str]:
    """To each question the answer that comes most often to all of its topic in training, on scenes of a size in px."""
    usual: dict[str, Counter[str]] = {topic: Counter() for topic in TOPICS}
    for scene in scenes("train", FREQUENT, "narrow", size):
        for question in questions(scene):
            usual[question.topic][question.answer] += 1
    return [usual[question.topic].most_common(1)[0][0] for question, _ in asked]


def shares_by_topic(asked: Sequence[tuple[Question, int]], answers: Sequence[str]) -> Told:
    """Shares of right answers in `all`, and by topic. asked: as of `one_of_each`."""
    rows: dict[str, list[tuple[bool, int]]] = {}
    for (question, _), answer in zip(asked, answers, strict=True):
        for topic in ("all", question.topic):
            rows.setdefault(topic, []).append((answer == question.answer, 1))
    return {topic: bootstrap(rows[topic]) for topic in ("all", *TOPICS) if topic in rows}


def compare_answers(asked: Sequence[tuple[Question, int]], given: Mapping[str, Sequence[str]]) -> dict[str, Told]:
    """`shares_by_topic` of the answers of several sides: by topic, and then by side."""
    told = {name: shares_by_topic(asked, answers) for name, answers in given.items()}
    return {topic: {name: told[name][topic] for name in told} for topic in next(iter(told.values()))}
