"""Talking with the assistant: histories in, replies out, and pictures that follow instructions."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from seedx_lite.models.detokenizer import widen_conv_in
from seedx_lite.models.generation import Generated
from seedx_lite.pipelines.dialogue import read_history, reply

STEPS = {"num_inference_steps": 2}


def picture(seed, size=(32, 32)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def seedx(assistant_of, detokenizer_parts):
    parts = copy.deepcopy(detokenizer_parts)
    widen_conv_in(parts["unet"])
    torch.nn.init.normal_(parts["unet"].conv_in.weight, std=0.1)
    return assistant_of(parts)


def ask(*content):
    return {"role": "user", "content": list(content)}


def said(*content):
    return {"role": "assistant", "content": list(content)}


def answering(seedx, monkeypatch, texts, drawn=()):
    """The model says these texts; those with the numbers `drawn` come with a picture. Returns what it was asked."""
    tokenizer, asked = seedx.processor.layout.tokenizer, []

    def generate(input_ids, attention_mask, **shown):
        asked.append((input_ids, shown))
        rows = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
        rows = rows[: len(input_ids)]
        return [
            Generated(row, row, [torch.full((64, 32), float(number))] if number in drawn else [])
            for number, row in enumerate(rows)
        ]

    monkeypatch.setattr(seedx.model, "generate", generate)
    return asked


def test_a_history_becomes_turns():
    """Bugs: a picture of a later turn shown first; what the assistant drew taken for what was shown."""
    one, two, drawn = picture(1), picture(2, (64, 32)), picture(3)
    history = [
        ask(one, "what is there?"),
        said("a cat"),
        ask("draw a dog"),
        said("here it is.", drawn),
        ask("now this"),
    ]
    turns, shown = read_history(history, two)
    assert [turn.shown for turn in turns] == [((32, 32),), (), ((64, 32),)] and shown == [one, two]
    assert [(turn.question, turn.answer, turn.drawn) for turn in turns] == [
        ("what is there?", "a cat", None),
        ("draw a dog", "here it is.", (32, 32)),
        ("now this", "", None),
    ]
    assert read_history([{"role": "user", "content": "hello"}])[0][0].question == "hello"


@pytest.mark.parametrize(
    ("history", "error", "message"),
    [
        ([], ValueError, "0 messages; expected an odd number"),
        ([ask("a cat"), said("yes")], ValueError, "2 messages; expected an odd number: a history ends with a question"),
        ([ask("a"), ask("b"), ask("c")], ValueError, "message 1 is of 'user', expected 'assistant': roles take turns"),
        ([said("yes")], ValueError, "message 0 is of 'assistant', expected 'user'"),
        ([ask("a"), said(), ask("c")], ValueError, "message 1 has 0 pictures; expected words, one picture, or both"),
        ([ask(picture(1), " ")], ValueError, "message 0 asks nothing: give it a text"),
        ([ask("a", 3)], TypeError, "message 0 holds a int; expected texts and pictures"),
        ([ask("a"), said(picture(1), picture(2)), ask("c")], ValueError, "message 1 has 2 pictures"),
    ],
)
def test_histories_that_cannot_be(history, error, message):
    with pytest.raises(error, match=message):
        read_history(history)


def test_words_boxes_and_pictures_in_one_reply():
    """Bugs: width and height swapped; location tokens left in the text; a broken box that ends the conversation."""
    box = "<box_start><loc-112><loc-56><loc-56><loc-112><box_end>"
    told = reply(f"the cat [[ {box} ]] and the dog", [picture(1)], picture(2, (64, 32)))
    assert told.text == "the cat and the dog" and told.boxes == [(24.0, 0.0, 40.0, 16.0)] and len(told.pictures) == 1
    assert told.message["role"] == "assistant" and told.message["content"][0].endswith("]] and the dog")
    assert reply("the cat [[ <box_start><loc-112> ]]", [], picture(2)).boxes == []
    assert reply(f"the cat [[ {box}", [], None)[:2] == ("the cat", [])
    for quiet in (reply("", [], None), reply("", [picture(1)], None), reply("two", [picture(1), picture(2)], None)):
        turns, _ = read_history([ask("a cat"), quiet.message, ask("a dog")])
        assert bool(turns[0].drawn) == bool(quiet.pictures)


def test_chat_goes_on(seedx, monkeypatch):
    """Bugs: a reply that cannot be put into the history; what was shown in the first turn is forgotten in the second;
    a stream that repeats or leaves out words."""
    asked, shown = answering(seedx, monkeypatch, ["a red cat"], drawn=(0,)), picture(1)
    first = seedx.chat([ask("what is there?")], shown, seed=3, **STEPS)
    assert first.text == "a red cat" and first.pictures[0].size == (32, 32)
    seedx.chat([ask(shown, "what is there?"), first.message, ask("is there a dog?")], **STEPS)
    (before, alone), (after, images) = asked
    assert alone["generator"].initial_seed() == 3, "what a picture is drawn from depends on the seed alone"
    assert torch.equal(after[0, : before.shape[1]], before[0]) and len(images["image_embeds"]) == 1
    assert images["embeds_cmp_mask"].tolist() == [True] and after.shape[1] > before.shape[1] + 64
    monkeypatch.undo()
    words = []
    whole = seedx.chat([ask("what is there?")], shown, max_new_tokens=9, stream=words.append)
    assert words[-1] == seedx._said(seedx.processor.layout.tokenizer(words[-1], add_special_tokens=False).input_ids)
    assert whole.text in words[-1] and all(late.startswith(early) for early, late in pairwise(words))
    assert len(seedx.chat([ask("hello")], force_image=True, max_new_tokens=70, **STEPS).pictures) == 1


def test_edits_keep_the_picture_as_condition(seedx, monkeypatch):
    """Bugs: the condition image of a neighbour; an answer without a picture that shifts all others; another picture
    when the same edit stands alone."""
    answering(seedx, monkeypatch, ["here it is.", "the red cat is not here.", "here it is."], drawn=(0, 2))
    pictures, conditions = [picture(1), picture(2), picture(3, (64, 32))], []
    inner = seedx.detokenizer._condition_latents
    monkeypatch.setattr(
        seedx.detokenizer, "_condition_latents", lambda images, *a: conditions.append(images) or inner(images, *a)
    )
    replies = seedx.edit(pictures, "remove the red cat", seed=5, **STEPS)
    assert [one.size for reply in replies for one in reply.pictures] == [pictures[0].size, (64, 32)]
    assert [len(one.pictures) for one in replies] == [1, 0, 1] and replies[1].text == "the red cat is not here."
    assert [image.tobytes() for image in conditions[0]] == [
        pictures[0].tobytes(),
        pictures[2].resize((32, 32)).tobytes(),
    ]
    alone = seedx.edit(pictures[0], "remove the red cat", seed=5, **STEPS)[0]
    other = seedx.edit(pictures[0], "remove the red cat", seed=6, **STEPS)[0]
    first, same, different = (np.asarray(one.pictures[0], dtype=int) for one in (replies[0], alone, other))
    assert abs(first - same).max() <= 1 and abs(first - different).max() > 10  # batches differ in the last digit


def test_edits_that_cannot_be(seedx, assistant_of, detokenizer_parts):
    assert seedx.replies([]) == []
    with pytest.raises(ValueError, match="message 0 asks nothing"):
        seedx.edit(picture(1), "")
    with pytest.raises(ValueError, match="takes no condition image; give one of the second stage"):
        assistant_of(detokenizer_parts).edit(picture(1), "remove the cat")
    for size in ((7, 7), (16, 100)):
        with pytest.raises(ValueError, match=f"a picture of {size[0]}×{size[1]} px; expected sides of 8 or more, and"):
            seedx.edit(picture(1, size), "remove the cat")
