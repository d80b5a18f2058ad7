"""What the language model is pre-trained on: texts about scenes, without pictures."""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from seedx_lite.world.edits import sample_edit
from seedx_lite.world.language import DETAILS, caption, detections, full_caption, grounded_description
from seedx_lite.world.questions import Question, questions, varied
from seedx_lite.world.scene import Scene, sample_scene
from .corpora import pick
from .prompts import INSTRUCTION, READING
from .tokenizer import check_words

SHARES = {"full": 0.25, "partial": 0.1, "one_thing": 0.05, "grounded": 0.15, "questions": 0.25, "edit": 0.2}
MOST_QUESTIONS = 4  # after one description
LESSONS = {"boxes": 0.15, "any": 0.25, "varied": 0.3, "apart": 0.3}  # shares, by what is asked, see `lesson`
LESSON_QUESTIONS = 8  # most after one text
APART = {"colour", "place", "pose", "relation", "comparison"}  # topics for which things must be told apart
Piece = tuple[str, bool]  # of a text, and whether it is an answer


def document(form: str, index: int, split: str, rng: np.random.Generator) -> str:
    """One text about scene `index` of a split; form: one of `SHARES`. Raises ValueError for another."""
    if form == "edit":
        edit = sample_edit(index, split)
        instruction = INSTRUCTION.format(instruction=edit.instruction)
        return f"{full_caption(edit.source, rng)}\n{instruction}{full_caption(edit.target, rng)}"
    return scene_document(form, sample_scene(index, split), rng)


def scene_document(form: str, scene: Scene, rng: np.random.Generator) -> str:
    """`document` of a given scene, for all forms but `edit`."""
    if form in DETAILS:
        return caption(scene, form, rng)
    if form == "grounded":
        return grounded_description(scene, rng)
    if form != "questions":
        raise ValueError(f"document: form is one of {', '.join(SHARES)}, got {form!r}")
    everything = questions(scene)
    chosen = rng.permutation(len(everything))[: int(rng.integers(1, MOST_QUESTIONS + 1))]
    return full_caption(scene, rng) + "".join("".join(asked(everything[i])) for i in chosen)


def lesson(index: int, split: str, rng: np.random.Generator) -> list[Piece]:
    """A text about scene `index` of a split, and questions about it, each with its answer. Either a description with
    boxes, and boxes that are asked for; or a caption, and questions: of any topics, most of which are about presence
    and number; of varied topics; or, where there are several things, of the topics for which they must be told apart,
    which are learned last."""
    scene, form = sample_scene(index, split), pick(LESSONS, rng)
    if form == "boxes":
        told, turns = grounded_description(scene, rng), [(f"\n{ask}", box) for ask, box in detections(scene, rng)]
    else:
        told, everything = full_caption(scene, rng), questions(scene)
        if form == "apart" and len(scene.things) > 1:
            everything = [question for question in everything if question.topic in APART]
        elif form != "any":
            everything = varied(everything, LESSON_QUESTIONS, rng)
        turns = list(map(asked, everything))
    pieces = [(told, False)]
    for i in rng.permutation(len(turns))[:LESSON_QUESTIONS]:
        question, answer = turns[i]
        pieces += [(question, False), (answer, True)]
    return pieces


def asked(question: Question) -> tuple[str, str]:
    """A question as it goes on after a text, and its answer."""
    return f"\n{READING.format(question=question.text)}", f" {question.answer}"


def encode_lessons(tokenizer, lessons: Sequence[Sequence[Piece]]) -> tuple[Tensor, Tensor]:
    """Token ids [B, L] as of `encode_documents`, and bool [B, L]: where answers stand. Raises ValueError for unknown
    words."""
    texts, marks = ["".join(text for text, _ in pieces) for pieces in lessons], []
    ids = encode_documents(tokenizer, texts)
    for pieces in lessons:
        parts = [[answer] * len(tokenizer(text, add_special_tokens=False).input_ids) for text, answer in pieces]
        row = [False, *chain(*parts)]  # after `<s>`
        marks.append(row + [False] * (ids.shape[1] - len(row)))
    return ids, torch.tensor(marks)


def pack_documents(tokenizer, texts: Iterator[str], rows: int, length: int) -> Tensor:
    """Token ids [rows, length]: `<s> text </s>` one after the other, as many as it takes, without padding. So a model
    knows long contexts, in which most is not about what comes next. Raises ValueError for unknown words, and
    StopIteration where there are not enough texts."""
    ids = list[int]()
    while len(ids) < rows * length:
        ids += encode_documents(tokenizer, [next(texts)])[0].tolist()
    return torch.tensor(ids[: rows * length]).unflatten(0, (rows, length))


def encode_documents(tokenizer, texts: list[str]) -> Tensor:
    """Token ids [B, L] of `<s> text </s>`, padded on the right to the longest. Raises ValueError for unknown words."""
    rows = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]
    if any(tokenizer.unk_token_id in row for row in rows):
        check_words(tokenizer, texts)
    longest = max(map(len, rows))
    return torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
