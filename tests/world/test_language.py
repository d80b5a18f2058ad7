"""The grammar of the toy world: closed, readable, unambiguous, balanced."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from seedx_lite.world import language
from seedx_lite.world.captions import read_caption
from seedx_lite.world.edits import sample_edit
from seedx_lite.world.language import Choices
from seedx_lite.world.questions import TOPICS, questions
from seedx_lite.world.scene import HELD_OUT, Scene, Thing, sample_scene

README_SENTENCE = "a person in a red shirt waves beside a blue car on grass at sunset"
SCENES = [sample_scene(index) for index in range(500)]
WIDE = [sample_scene(index, size=(192, 64)) for index in range(100)]
PAIR = Scene((Thing("cat", "red", 0.2, 0.9, 0.3), Thing("cat", "blue", 0.8, 0.9, 0.3)))


def test_vocabulary_is_exactly_what_is_said():
    """Guards against a word that tokenizers do not know, and against dead words."""
    rng = np.random.default_rng(0)
    said = set(language.words("."))  # ends a sentence of a reader's own
    for scene in SCENES + WIDE:
        texts = [write(scene, rng) for write in language.DETAILS.values()]
        texts += [language.grounded_description(scene, rng), *("".join(pair) for pair in language.detections(scene))]
        texts += [f"{question.text} {question.answer}" for question in questions(scene)]
        said.update(*map(language.words, texts))
    for index in range(500):
        said.update(language.words(sample_edit(index).instruction))
    marks = {word for word in said if word.startswith("<")}
    assert marks <= {language.BOX_START, language.BOX_END, *language.LOCATION_TOKENS}
    assert said - marks == set(language.vocabulary())


def test_words_keep_tokens_whole():
    """Guards against a tokenizer that splits location tokens or keeps capitals apart."""
    text = "The Car [[ <box_start><loc-7>"
    assert language.words(text) == ["the", "car", "[[", "<box_start>", "<loc-7>"]


def test_full_captions_say_everything():
    """Guards against a caption that hides or mixes up something that is scored."""
    for seed, scene in enumerate(SCENES + WIDE):
        assert read_caption(language.full_caption(scene, seed)).content == scene.content
        assert read_caption(language.canonical_caption(scene)).content == scene.content


def test_captions_are_short_and_varied():
    """Guards against captions that a text encoder of 64 positions would cut, and against a single wording."""
    crowd = Scene(
        tuple(Thing("person", "orange", x, 0.9, 0.5, pose="waving") for x in (0.2, 0.5, 0.8)), ground="street"
    )
    texts = {language.full_caption(crowd, seed) for seed in range(500)}
    assert len(texts) == 6 * 2 * 2 * 2 * 2
    assert max(len(re.findall(r"[a-z]+", text)) for text in texts) < 40
    assert max(len(language.words(text)) for text in texts) <= 62
    assert language.canonical_caption(crowd) == language.canonical_caption(crowd)


def test_other_captions_leave_room():
    """Guards against a partial caption that fixes all, and against one that says what is not so."""
    for seed, scene in enumerate(SCENES):
        said = read_caption(language.partial_caption(scene, seed))
        assert said.content != scene.content
        assert said.sky in (None, scene.sky) and said.ground in (None, scene.ground)
        for claim in said.things:
            assert any(all(a in (None, b) for a, b in zip(claim, thing, strict=True)) for thing in scene.content[2:])
        one = read_caption(language.one_thing_caption(scene, seed))
        assert (one.sky, one.ground, len(one.things), one.things[0][0]) == (None, None, 1, None)


def test_readme_sentence_is_in_the_grammar():
    """Guards against a first example that the trained models were never told about."""
    assert set(language.words(README_SENTENCE)) <= set(language.vocabulary())
    scene = Scene(
        (Thing("person", "red", 0.3, 0.9, 0.5, pose="waving"), Thing("car", "blue", 0.7, 0.9, 0.2)), sky="sunset"
    )
    assert README_SENTENCE in {language.partial_caption(scene, seed) for seed in range(4000)}
    said = read_caption(README_SENTENCE)
    assert said.content == ("sunset", "grass", (None, "person", "red", "waving"), (None, "car", "blue", ""))


@pytest.mark.parametrize("text", ["", "a red cat and a lion", "on grass", "a cat by day at night", "hello a car"])
def test_foreign_sentences_are_refused(text):
    """Guards against reading half a sentence in silence."""
    with pytest.raises(ValueError, match="not a caption"):
        read_caption(text)


def test_unknown_detail_is_refused():
    """Guards against a silent default where a configuration is misspelt."""
    with pytest.raises(ValueError, match="one_thing"):
        language.caption(SCENES[0], "complete", 0)


def test_choices_share_one_generator():
    """Guards against captions that repeat because every call starts the generator anew."""
    rng = np.random.default_rng(0)
    crowded = max(SCENES, key=lambda scene: len(scene.things))
    assert len({language.full_caption(crowded, rng) for _ in range(50)}) > 10
    assert Choices(None).pick("abc") == "a"


def test_references_fit_one_thing_only():
    """Guards against `the cat` where two cats stand, and against places that viewers would dispute."""
    left, _ = PAIR.things
    assert language.refer(PAIR, left) == "the red cat"
    assert language.refer(PAIR, left, avoid=("colour",)) == "the cat on the left"
    assert language.refer(PAIR, left, avoid=("colour", "place")) is None
    border = Scene((Thing("cat", "red", 0.34, 0.9, 0.3), Thing("cat", "red", 0.8, 0.9, 0.3)))
    assert language.refer(border, border.things[0]) is None


def test_boxes_come_back():
    """Guards against swapped axes, or corners where SEED-X writes centre and extent."""
    assert language.box_to_tokens((0, 0.25, 0.5, 0.75)) == "<box_start><loc-56><loc-112><loc-112><loc-112><box_end>"
    rng = np.random.default_rng(0)
    for _ in range(300):
        (left, right), (top, bottom) = np.sort(rng.uniform(0, 0.99, (2, 2)))
        back = language.tokens_to_box(language.box_to_tokens((left, top, right, bottom)))
        assert abs(back[0] + back[2] - left - right) <= 1 / language.LOCATIONS + 1e-9  # twice the centre
        assert abs(back[2] - back[0] - right + left) <= 0.5 / language.LOCATIONS + 1e-9
        assert abs(back[1] + back[3] - top - bottom) <= 1 / language.LOCATIONS + 1e-9
        assert abs(back[3] - back[1] - bottom + top) <= 0.5 / language.LOCATIONS + 1e-9
    whole = language.box_to_tokens((-1, -1, 2, 2))
    assert whole == "<box_start><loc-112><loc-112><loc-223><loc-223><box_end>"
    assert language.box_to_tokens(language.tokens_to_box(whole)) == whole


@pytest.mark.parametrize("box", [(0, 0, 1), (0.5, 0, 0.5, 1), (0.6, 0, 0.5, 1), (1.1, 0, 1.2, 1), (0, 0, math.nan, 1)])
def test_bad_boxes_are_refused(box):
    """Guards against training on boxes that enclose nothing."""
    with pytest.raises(ValueError, match="box"):
        language.box_to_tokens(box)


@pytest.mark.parametrize(
    "inner", ["", "<loc-1><loc-2><loc-3>", "<loc-1><loc-2><loc-3><loc-224>", "1 2 3 4", "<loc-1>" * 5]
)
def test_malformed_box_tokens_are_refused(inner):
    """Guards against a model's broken output that is scored as a box."""
    with pytest.raises(ValueError, match="not a box"):
        language.tokens_to_box(f"<box_start>{inner}<box_end>")
    with pytest.raises(ValueError, match="not a box"):
        language.find_boxes(f"the car [[ <box_start>{inner}<box_end> ]]")
    with pytest.raises(ValueError, match="not a box"):
        language.find_boxes("the car [[ <box_start><loc-1><loc-2>")


def test_grounded_descriptions_box_every_thing():
    """Guards against boxes in another order than the things they follow."""
    for seed, scene in enumerate(SCENES[:100]):
        text = language.grounded_description(scene, seed)
        named = re.findall(rf"({'|'.join(language.KINDS)})[a-z ]* \[\[ (\S+) \]\]", text)
        expected = [(thing.kind, language.box_to_tokens(scene.box(thing))) for thing in scene.things]
        assert sorted(named) == sorted(expected)
        assert len(language.find_boxes(text)) == len(expected)
    for prompt, answer in language.detections(PAIR):
        assert language.DETECTION_PROMPT.format(caption="") in prompt and answer.endswith("<box_end> ]]")
        (box,) = language.find_boxes(prompt + answer)
        assert (box[0] < 0.5) == ("red" in prompt)


def test_questions_are_unambiguous_and_balanced():
    """Guards against two answers to one question, and against a bias that a blind model could learn."""
    yes_no, topics = Counter(), Counter()
    held_out = re.compile("|".join(f"{colour} {kind}" for kind, colour in HELD_OUT) + "|in an orange shirt")
    for scene in SCENES + WIDE:
        asked = questions(scene)
        assert asked == questions(scene)
        assert len({question.text for question in asked}) == len(asked)
        topics.update(question.topic for question in asked)
        yes_no.update((q.topic, q.answer) for q in asked if q.answer in ("yes", "no"))
        assert not any(held_out.search(question.text) for question in asked)
    assert set(topics) == set(TOPICS)
    for topic in ("presence", "relation"):
        assert yes_no[topic, "yes"] == yes_no[topic, "no"] > 0


def test_answers_are_true():
    """Guards against an answer that the scene contradicts."""
    cat, person, car = (
        Thing("cat", "white", 0.2, 0.8, 0.3),
        Thing("person", "red", 0.5, 0.9, 0.5, pose="running"),
        Thing("car", "blue", 0.8, 0.95, 0.2),
    )
    answers = {q.text: q.answer for q in questions(Scene((cat, person, car), sky="night", ground="street"))}
    expected = {
        "what time is it?": "night",
        "what is the ground?": "a street",
        "how many things are there?": "three",
        "how many people are there?": "one",
        "what colour is the cat?": "white",
        "what colour is the shirt of the person?": "red",
        "where is the car?": "on the right",
        "what is the person doing?": "running",
        "is there a blue car?": "yes",
    }
    assert expected.items() <= answers.items()
    order = {"the cat": 0, "the person": 1, "the car": 2}
    for text, answer in answers.items():
        if match := re.fullmatch(r"is (.+) to the (left|right) of (.+)\?", text):
            is_left = order[match[1]] < order[match[3]]
            assert answer == ("yes" if is_left == (match[2] == "left") else "no")
        if text.startswith("which is taller"):
            assert answer == ("the person" if "person" in text else "the cat")
        if text.startswith("which is nearer"):
            assert answer == ("the car" if "car" in text else "the person")
