"""Questions about scenes that every model is asked, and the shares of right answers."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from seedx_lite.world.questions import TOPICS, Question, questions
from seedx_lite.world.scene import Scene
from .statistics import bootstrap

Told = dict[str, dict[str, float]]


def one_of_each(wanted: Sequence[Scene], topics: Sequence[str] = TOPICS) -> list[tuple[Question, int]]:
    """A question of each topic that a scene has one of, with the place of the scene; always the same."""
    rng, asked = np.random.default_rng(0), []
    for place, scene in enumerate(wanted):
        everything = questions(scene)
        chosen = {everything[i].topic: everything[i] for i in rng.permutation(len(everything))}
        asked += [(question, place) for topic, question in chosen.items() if topic in topics]
    return asked


def frequent_answers(among: Iterable[Scene]) -> dict[str, str]:
    """By topic, the answer that comes most often to all questions about some scenes."""
    usual: dict[str, Counter[str]] = {topic: Counter() for topic in TOPICS}
    for scene in among:
        for question in questions(scene):
            usual[question.topic][question.answer] += 1
    return {topic: answers.most_common(1)[0][0] for topic, answers in usual.items() if answers}


def shares_by_topic(asked: Sequence[tuple[Question, int]], answers: Sequence[str]) -> Told:
    """Shares of right answers in `all`, and by topic. asked: as of `one_of_each`."""
    rows: dict[str, list[tuple[bool, int]]] = {}
    for (question, _), answer in zip(asked, answers, strict=True):
        for topic in ("all", question.topic):
            rows.setdefault(topic, []).append((answer == question.answer, 1))
    return {topic: bootstrap(rows[topic]) for topic in ("all", *TOPICS) if topic in rows}
