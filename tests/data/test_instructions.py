"""What instruction tuning is made of: dialogues that are about their pictures, and edits."""

import re
from collections import Counter

import numpy as np
import pytest

from seedx_lite.data.instructions import (
    ABSENT_EDITS,
    CHAT,
    HERE,
    MOST_TURNS,
    Chains,
    Dialogues,
    Edits,
    absent_edit,
    reading_turn,
)
from seedx_lite.data.layout import IGNORED, Layout
from seedx_lite.data.tokenizer import llm_tokenizer
from seedx_lite.world.draw import render
from seedx_lite.world.edits import sample_chain, sample_edit
from seedx_lite.world.language import box_to_tokens, full_caption, references
from seedx_lite.world.questions import questions
from seedx_lite.world.scene import COLOURS, HELD_OUT, KINDS, PLACES, POSES, Scene, Thing, sample_scene

SIZE = (32, 32)


@pytest.fixture(scope="module")
def layout():
    return Layout(llm_tokenizer(), max_length=500, input_tokens=4, output_tokens=9, base_resolution=32)


def text_of(layout, ids):
    return " ".join(layout.tokenizer.convert_ids_to_tokens(ids))


def test_turns_say_what_is_there():
    """Bugs: an answer about another scene, a box of another thing, an absent thing that is there; a wording outside of
    the vocabulary would fail in `Layout`."""
    rng = np.random.default_rng(0)
    for index in range(40):
        scene = sample_scene(index, size=SIZE)
        turns = {form: reading_turn(form, scene, rng) for form in CHAT if form != "drawing"}
        assert turns["describe"].answer in {full_caption(scene, seed) for seed in range(400)}
        assert (turns["question"].question, turns["question"].answer) in {(q.text, q.answer) for q in questions(scene)}
        assert turns["ground"].answer.count("<box_start>") == len(scene.things)
        named = {f"{p} [[ {box_to_tokens(scene.box(t))} ]]" for t in scene.things for p in references(scene, t)}
        asked, answer = turns["find"].question, turns["find"].answer
        assert answer in named and answer.partition(" [[")[0] in asked
        phrase = turns["find absent"].answer.removesuffix(" is not here.")
        assert phrase in turns["find absent"].question
        for thing in scene.things:
            colours = [colour for colour in COLOURS if colour in phrase.split()]
            assert len(colours) == 1 and ((thing.kind not in phrase) or thing.colour != colours[0])
            assert (thing.kind, colours[0]) not in HELD_OUT or thing.kind not in phrase
    with pytest.raises(ValueError, match=r"form is one of describe, .* but not drawing; got 'poem'"):
        reading_turn("poem", scene, rng)


def test_dialogues(layout):
    """Bugs: a picture shown twice, or never though it is asked about; a drawn scene with the picture of another; forms
    that are not in their shares; two turns at most."""
    corpus, rng = Dialogues(layout, 12, SIZE), np.random.default_rng(1)
    pictures = [np.asarray(render(sample_scene(index, size=SIZE))) for index in range(12)]
    turns, drawn, early, lengths = Counter(), 0, 0, Counter()
    for number in range(300):
        sample, rows = corpus.sample(number % 12, rng)
        text = text_of(layout, sample.input_ids)
        lengths[asked := text.count("[ inst ]")] += 1
        drawings = sum(sample.embeds_gen_mask)
        assert len(rows) == len(sample.embeds_cmp_mask) and drawings <= len(rows) <= drawings + 1
        assert asked == drawings or len(rows) == drawings + 1, "asked about a picture that is not shown"
        first = text.partition("[/ inst ]")[0]
        early += "<img>" in first and (" draw " in first or "paint" in first or "picture of" in first)
        if len(rows) > drawings:
            assert rows[0] == number % 12 and sample.embeds_cmp_mask[0]
        for row, draws in zip(rows, sample.embeds_gen_mask, strict=True):
            assert np.array_equal(corpus.squares[row], pictures[row])
            drawn += draws
        trained = text_of(layout, [label for label in sample.labels if label != IGNORED])
        assert trained.count("here it is . <img>") == drawings
        turns["drawing"] += drawings
        turns["all"] += asked
    assert set(lengths) == set(range(1, MOST_TURNS + 1)) and min(lengths.values()) > 70
    assert abs(turns["drawing"] / turns["all"] - CHAT["drawing"]) < 0.05
    assert early > 10, "a picture may be there before it is asked about"


def test_wide_scenes_are_not_drawn(layout):
    corpus, rng = Dialogues(layout, 4, (64, 32)), np.random.default_rng(0)
    for number in range(40):
        sample, rows = corpus.sample(number % 4, rng)
        assert not any(sample.ids_gen_mask) and rows in (corpus.rows(number % 4), corpus.rows(number % 4)[-1:])


def test_edits(layout):
    """Bugs: source and target exchanged, or of another edit; an edit of what is not there that draws something."""
    corpus, rng, absent = Edits(layout, 10, SIZE), np.random.default_rng(0), 0
    assert len(corpus) == 10
    for number in range(400):
        edit = sample_edit(number % 10, size=SIZE)
        sample, rows = corpus.sample(number % 10, rng)
        trained = text_of(layout, [label for label in sample.labels if label != IGNORED])
        assert np.array_equal(corpus.squares[rows[0]], np.asarray(render(edit.source)))
        if len(rows) == 2:
            assert " ".join(layout.tokenizer.tokenize(edit.instruction)) in text_of(layout, sample.input_ids)
            assert np.array_equal(corpus.squares[rows[1]], np.asarray(render(edit.target)))
            assert trained == " ".join([*layout.tokenizer.tokenize(HERE), "<img> </s>"])
        else:
            absent += 1
            assert trained.endswith("is not here . </s>") and not any(sample.ids_gen_mask)
    assert 0 < absent < 3 * ABSENT_EDITS * 400


def test_edits_of_what_is_not_there_are_worded_as_others():
    """Bugs: a wording, or a new colour, that no edit which can be done has, so that nothing has to be looked for."""
    possible, held_out = set(), {" ".join(pair[::-1]) for pair in HELD_OUT}
    for index in range(400):
        edit = sample_edit(index, size=SIZE)
        possible.add(without_names(edit.instruction))
    for index in range(200):
        scene = sample_scene(index, size=SIZE)
        turn = absent_edit(scene, np.random.default_rng(index))
        assert without_names(turn.question) in possible, turn.question
        named = [word for word in turn.question.split() if word in COLOURS]
        assert len(set(named)) == len(named) or "replace" in turn.question or "into" in turn.question, "no change"
        assert not any(pair in turn.question for pair in held_out)


def test_a_scene_with_things_of_every_kind():
    """Bug: nothing of another kind is missing there, and a training ends."""
    places = np.linspace(0.05, 0.95, len(KINDS))
    things = [
        Thing(kind, COLOURS[0], x, 0.9, 0.2, pose=POSES[0] if kind == "person" else None)
        for kind, x in zip(KINDS, places, strict=True)
    ]
    turn = absent_edit(Scene(tuple(things), width=3 * SIZE[0], height=SIZE[1]), np.random.default_rng(0))
    assert turn.answer.endswith("is not here.") and COLOURS[0] not in turn.answer


def without_names(instruction):
    """With `X` in place of each thing with its article, and of each colour and place."""
    kinds, places = "|".join(KINDS), "|".join(PLACES)
    where = rf"(?: (?:on|in) the (?:{places}))?"
    plain = re.sub(rf"\b(?:the|an?) (?:\w+ )?(?:{kinds})(?: in (?:the|an?) \w+ shirt)?{where}\b", "X", instruction)
    return re.sub(rf"\b(?:an? )?(?:{'|'.join((*COLOURS, *PLACES))})\b", "C", plain)


def test_chains(layout):
    """Bugs: a step that starts from the first picture again; what was drawn is not shown with the next instruction;
    chains that are all of one length."""
    corpus, rng, lengths = Chains(layout, 4, SIZE), np.random.default_rng(0), Counter()
    assert len(corpus) == 4
    for number in range(60):
        edits = sample_chain(number % 4, 3, size=SIZE)
        sample, rows = corpus.sample(number % 4, rng)
        count = sum(sample.embeds_gen_mask)
        lengths[count] += 1
        assert len(rows) == 2 * count == 2 * sum(sample.embeds_cmp_mask)
        for edit, read, drawn in zip(edits, rows[:count], rows[count:], strict=False):
            assert np.array_equal(corpus.squares[read], np.asarray(render(edit.source)))
            assert np.array_equal(corpus.squares[drawn], np.asarray(render(edit.target)))
        text = text_of(layout, sample.input_ids)
        places = [text.index(" ".join(layout.tokenizer.tokenize(edit.instruction))) for edit in edits[:count]]
        assert places == sorted(places) and text.count("[ inst ]") == count
    assert set(lengths) == {1, 2, 3} and min(lengths.values()) > 8
