"""Samples as token ids: what is read, drawn and trained, and what cannot be used."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from seedx_lite.data.collate import collate
from seedx_lite.data.layout import IGNORED, Layout, Turn
from seedx_lite.data.prompts import INSTRUCTION, READING
from seedx_lite.data.tokenizer import llm_tokenizer

TURNS = ("what is this ?", "a red cat on grass by day")


@pytest.fixture(scope="module")
def layout():
    return Layout(llm_tokenizer(), max_length=100, input_tokens=4, output_tokens=9, base_resolution=64)


def text_of(layout, ids):
    return " ".join(layout.tokenizer.convert_ids_to_tokens(ids))


def read_and_drawn(layout, sample):
    """The tokens that are read, and those that are drawn, as text."""
    masks = sample.ids_cmp_mask, sample.ids_gen_mask
    return [text_of(layout, [i for i, m in zip(sample.input_ids, mask, strict=True) if m]) for mask in masks]


def test_a_picture_is_drawn_with_other_tokens_than_read(layout):
    """Bug: N of what is read is taken for N of what is drawn, so that ablations of N change reading, too."""
    sample = layout.edit("make the cat blue", (64, 64), (64, 64), "here it is")
    read, drawn = read_and_drawn(layout, sample)
    assert read.split() == [f"<img_{i:05d}>" for i in range(4)]
    assert drawn.split() == [f"<img_{i:05d}>" for i in range(9)]
    assert sample.embeds_cmp_mask == [True, False] and sample.embeds_gen_mask == [False, True]


def test_a_picture_of_one_square_is_shown_once(layout):
    """Bug: half of the context goes to a second copy of the same picture, as in the released code."""
    for official, size, sub_images in ((False, (64, 64), 1), (True, (64, 64), 2), (False, (128, 64), 3)):
        told, picture = replace(layout, official=official), Image.new("RGB", size)
        sample = told.conversation(TURNS, size)
        assert sample.patch_lengths == [sub_images] and sum(sample.ids_cmp_mask) == 4 * sub_images
        assert [square.size for square in told.squares(picture)] == [(64, 64)] * sub_images


def test_what_is_trained(layout):
    """Bug: the model learns to ask, or to write image tokens; or never learns to begin a picture, or to end."""
    told = text_of(layout, [label for label in layout.conversation(TURNS, (64, 64)).labels if label != IGNORED])
    assert told == "a red cat on grass by day </s>"
    drawn = layout.caption("a red cat", (64, 64), image_first=False)
    assert text_of(layout, [label for label in drawn.labels if label != IGNORED]) == "<img> </s>"


def test_message_before_all(layout):
    """Bug: a line break between the message and the first question that is missing, or there twice; lost in edits."""
    for message in ("you can draw", "you can draw\n"):
        told = replace(layout, system_message=message)
        edit = told.edit("make the cat blue", (64, 64), (64, 64), image_first=False)
        for sample, question in ((told.conversation(TURNS), "what"), (edit, "make")):
            assert text_of(layout, sample.input_ids).startswith(f"<s> you can draw \n [ inst ] {question}")
            assert set(sample.labels[:5]) == {IGNORED}


def test_too_long_for_the_context(layout):
    """Bug: a sample is cut off in the middle of a picture, or before everything that is trained."""
    short = replace(layout, max_length=14)
    with pytest.raises(ValueError, match="its picture alone needs 22"):
        short.conversation(TURNS, (128, 64))
    with pytest.raises(ValueError, match="nothing is left to train in 14 tokens"):
        short.conversation((" ".join(TURNS), "a cat"))
    with pytest.raises(ValueError, match=r"\d+ tokens where 14 fit"):
        short.edit("make the cat blue", (64, 64), (64, 64))
    with pytest.raises(ValueError, match=r"\d+ tokens where 14 fit"):
        short.prompt(INSTRUCTION.format(instruction=" ".join(TURNS)))
    cut = replace(layout, max_length=22).conversation((TURNS[0], " ".join(TURNS)))
    assert len(cut.input_ids) == 22 and cut.labels[-1] == cut.input_ids[-1] != layout.tokenizer.eos_token_id


def test_an_edit_that_just_fits(layout):
    """Bug: the released code drops it, as if it were too long."""
    length = len(layout.edit("make the cat blue", (64, 64), (64, 64)).input_ids)
    assert len(replace(layout, max_length=length).edit("make the cat blue", (64, 64), (64, 64)).input_ids) == length
    with pytest.raises(ValueError, match="tokens where"):
        replace(layout, max_length=length, official=True).edit("make the cat blue", (64, 64), (64, 64))


def test_long_captions_are_drawn_where_they_fit(layout):
    """Bug: the released code counts a picture that is drawn once per sub-image, and turns samples around that fit."""
    wide = (256, 64)  # five sub-images
    for official in (False, True):
        sample = replace(layout, max_length=40, official=official).caption("a red cat", wide, image_first=False)
        assert any(sample.embeds_gen_mask) is not official
    sample = replace(layout, max_length=12).caption("a red cat on grass", (64, 64), image_first=False)
    assert not any(sample.embeds_gen_mask) and len(sample.input_ids) == 12


def test_small_and_narrow_pictures(layout):
    """Bug: the released code does not apply its limits to conversations."""
    strict = replace(layout, min_resolution=50, min_aspect_ratio=0.5)
    for size in ((49, 80), (200, 60), (60, 200)):
        with pytest.raises(ValueError, match=f"a picture of {size[0]}×{size[1]} px"):
            strict.conversation(TURNS, size)
        with pytest.raises(ValueError, match="leave it out"):
            strict.edit("make the cat blue", (64, 64), size)
        assert replace(strict, official=True).conversation(TURNS, size)
    assert strict.conversation(TURNS, (50, 100))


def test_image_tokens_in_a_text(layout):
    """Bug: a text that holds image tokens takes the embeddings of the picture beside it."""
    for turns in (("what is <img_00001> ?", "a cat"), ("what is this ?", "a <img_00001> cat")):
        with pytest.raises(ValueError, match=r"image tokens, expected \d+: take <img_…> out"):
            layout.conversation(turns, (64, 64))


def test_words_the_tokenizer_does_not_know(layout):
    """Bug: the model is trained on `<unk>`, and says so."""
    with pytest.raises(ValueError, match="unknown words quokka"):
        layout.conversation(("what is this ?", "a quokka"))
    with pytest.raises(ValueError, match="unknown words quokka"):
        layout.prompt("draw a quokka", draw=True)
    same = {tuple(layout.prompt(f"a red{blank}cat").input_ids) for blank in (" ", "\t", "\r", "\u00a0", "  ")}
    assert len(same) == 1 and layout.tokenizer.unk_token_id not in same.pop()


def test_more_image_tokens_than_the_tokenizer_has(layout):
    """Bug: N of 400 makes unknown tokens of what should be drawn."""
    for tokens in (400, 0):
        with pytest.raises(ValueError, match="expected 1 to 256"):
            replace(layout, output_tokens=tokens)


def test_questions_without_answers(layout):
    """Bug: a question at the end is dropped, or trained as an answer."""
    for turns in ((), TURNS[:1], (*TURNS, "and this ?")):
        with pytest.raises(ValueError, match="pairs of question and answer"):
            layout.conversation(turns)


def test_prompts(layout):
    """Bug: what is asked differs from what was trained: a picture elsewhere, an end mark, a missing `<img>`."""
    sample = layout.conversation(TURNS, (128, 64), image_first=True)
    prompt = layout.prompt(INSTRUCTION.format(instruction=TURNS[0]), [(128, 64)])
    assert prompt.input_ids == sample.input_ids[: len(prompt.input_ids)]
    assert prompt.patch_positions == sample.patch_positions and prompt.patch_lengths == [3]
    assert sample.labels[len(prompt.input_ids)] != IGNORED == sample.labels[len(prompt.input_ids) - 1]
    reading = layout.prompt(READING.format(question=TURNS[0]), [(64, 64)])
    assert text_of(layout, reading.input_ids).startswith("<s> <img> <img_00000>")
    drawing = layout.caption("a red cat", (64, 64), image_first=False)
    prompt = layout.prompt("a red cat", draw=True)
    assert prompt.input_ids == drawing.input_ids[: len(prompt.input_ids)] and not any(prompt.embeds_cmp_mask)


def test_batches(layout):
    """Bug: masks of one sample are shifted by the padding of another, or padding is read as text."""
    samples = [layout.conversation(TURNS, (64, 64)), layout.caption("a red cat", (64, 64), image_first=False)]
    pad = layout.tokenizer.pad_token_id
    right, left = (collate(samples, pad, length=60, left=left) for left in (False, True))
    for row, sample in enumerate(samples):
        length = len(sample.input_ids)
        for batch, own in ((right, slice(length)), (left, slice(60 - length, 60))):
            assert batch["input_ids"][row, own].tolist() == sample.input_ids
            assert batch["ids_gen_mask"][row, own].tolist() == sample.ids_gen_mask
            assert batch["attention_mask"][row, own].all() and batch["attention_mask"][row].sum() == length
            outside = torch.ones(60, dtype=torch.bool)
            outside[own] = False
            assert (batch["labels"][row, outside] == IGNORED).all() and (batch["input_ids"][row, outside] == pad).all()
            assert not batch["ids_cmp_mask"][row, outside].any()
    assert right["embeds_cmp_mask"].tolist() == [True, False] and right["embeds_gen_mask"].tolist() == [False, True]
    assert right["patch_positions"].shape == (2, 2)
    assert collate([layout.conversation(TURNS)], pad)["patch_positions"] is None


def test_batches_that_cannot_be(layout):
    """Bug: positions of one sample are taken for those of another that has none."""
    pad, whole = layout.tokenizer.pad_token_id, replace(layout, grids=None)
    samples = [layout.conversation(TURNS, (64, 64)), whole.conversation(TURNS, (64, 64))]
    with pytest.raises(ValueError, match="use one layout"):
        collate(samples, pad)
    for wrong, length in (([], None), (samples[:1], 5)):
        with pytest.raises(ValueError, match="expected 1 to"):
            collate(wrong, pad, length)


SQUARE = (64, 64)
EDITS = [Turn("make the cat blue", "here it is", (SQUARE,), SQUARE), Turn("remove the cat", "", ((128, 64),), SQUARE)]


def test_a_dialogue_with_pictures_in_questions_and_answers(layout):
    """Bugs: what was drawn in one turn is read in the next without being shown; a picture that is drawn is counted
    among those that are read; an end after each turn."""
    sample = layout.dialogue(EDITS)
    assert sample.embeds_cmp_mask == [True] * 4 + [False] * 2 and sample.patch_lengths == [1, 3, 1, 1]
    assert sample.embeds_gen_mask == [False] * 4 + [True] * 2
    changes = [
        name
        for name, before, after in (("read", sample.ids_cmp_mask, 4), ("drawn", sample.ids_gen_mask, 9))
        for start in range(len(before))
        if all(before[start : start + after]) and not before[start - 1]
    ]
    assert changes == ["read"] * 4 + ["drawn"] * 2
    trained = [label for label in sample.labels if label != IGNORED]
    assert text_of(layout, trained) == "here it is <img> <img> </s>"


def test_a_dialogue_of_one_kind_is_a_conversation_or_an_edit(layout):
    """Bug: three ways to lay out the same, of which one drifts away."""
    assert layout.dialogue(EDITS[:1]) == layout.edit("make the cat blue", SQUARE, SQUARE, "here it is")
    turns = [Turn(*TURNS, (SQUARE,)), Turn(*TURNS)]
    assert layout.dialogue(turns) == layout.conversation(TURNS * 2, SQUARE)


def test_a_dialogue_that_goes_on(layout):
    """Bugs: a prompt that differs from what was trained; embeddings expected of a picture that was drawn long ago."""
    whole = layout.dialogue(EDITS)
    for draw in (False, True):
        prompt = layout.ask([EDITS[0], EDITS[1]._replace(drawn=None)], draw)
        length = len(prompt.input_ids)
        assert prompt.input_ids == whole.input_ids[:length] and prompt.ids_cmp_mask == whole.ids_cmp_mask[:length]
        assert prompt.embeds_cmp_mask == [True] * 4 and prompt.patch_lengths == [1, 3]
        assert len(prompt.patch_positions) == 4 and prompt.ids_gen_mask == whole.ids_gen_mask[:length]
        assert text_of(layout, whole.input_ids[length - draw :]).startswith("<img> <img_00000>")


def test_dialogues_that_cannot_be(layout):
    with pytest.raises(ValueError, match="without turns"):
        layout.dialogue([])
    with pytest.raises(ValueError, match=r"\d+ tokens where 50 fit"):
        replace(layout, max_length=50).dialogue(EDITS)
    for turns in ([], EDITS, [Turn("what is this ?", "a cat")]):
        with pytest.raises(ValueError, match="ends with a question; leave its last answer out"):
            layout.ask(turns)
