"""What a user calls: lists in, lists out, the same on disk, and clear errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from seedx_lite.models.generation import Generated
from seedx_lite.pipelines.assistant import SeedX, draw_boxes
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline

STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def seedx(assistant_of, detokenizer_parts):
    return assistant_of(detokenizer_parts)


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    sizes = [(32, 32), (64, 32), (32, 40)]
    arrays = [torch.randint(256, (h, w, 3), generator=generator, dtype=torch.uint8).numpy() for w, h in sizes]
    return [Image.fromarray(array) for array in arrays]


def test_one_of_many_is_as_alone(seedx, pictures):
    """Bug: padding, or the picture of a neighbour, changes what is said of a picture; answers come in another order."""
    questions = ["what is there?", "is there a red cat?", "where is the car?"]
    described, answered = seedx.describe(pictures, 8), seedx.ask(pictures, questions, 8)
    assert len({*described, *answered}) > 3
    for place, picture in enumerate(pictures):
        assert seedx.describe(picture, 8) == [described[place]]
        assert seedx.ask(picture, questions[place], 8) == [answered[place]]
    assert seedx.ask(pictures[1], questions, 8)[1] == answered[1], "one picture for all questions"
    assert seedx.ask(pictures, questions[0], 8)[1:] == seedx.ask(pictures[1:], [questions[0]] * (len(pictures) - 1), 8)


def test_pictures_are_seen_as_they_were_meant(seedx):
    """Bugs: a photo that is read lying on its side; what is transparent turns black."""
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))
    tags = Image.Exif()
    tags[0x0112] = 6  # a quarter turn to the right
    lying = shown.rotate(90, expand=True)
    lying.getexif().update(tags)
    holes = shown.convert("RGBA")
    holes.putalpha(0)
    white = Image.new("RGB", (64, 32), "white")
    for given, meant in ((lying, shown), (holes, white)):
        assert seedx.describe(given, 8) == seedx.describe(meant, 8)
        same = seedx.detokenizer([given, meant], generator=[torch.Generator().manual_seed(1) for _ in "ab"], **STEPS)
        assert np.array_equal(*same.images)


def test_blind_means_without_the_picture(seedx, pictures):
    """Bug: a baseline of language alone that sees the picture after all."""
    square = [pictures[0], Image.new("RGB", (32, 32), "red")]
    seen, blind = (seedx.ask(square, ["what is there?"] * 2, 12, blind=blind) for blind in (False, True))
    assert seen[0] != seen[1] and blind[0] == blind[1]


def answering(seedx, monkeypatch, texts):
    tokenizer = seedx.processor.layout.tokenizer
    ids = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
    monkeypatch.setattr(seedx, "_generated", lambda *args, **kwargs: [Generated(row, row, []) for row in ids])


def test_boxes_in_pixels(seedx, pictures, monkeypatch):
    """Bugs: width and height swapped; a malformed answer that ends a whole list; the end mark taken for text."""
    good = "<loc-112><loc-56><loc-56><loc-112><box_end> ]]"
    answering(seedx, monkeypatch, [good, "<loc-112><loc-56><box_end> ]]", "on the left"])
    found = seedx.detect(pictures[1], ["the cat", "the red car", "the boat"])
    assert found == [[(24.0, 0.0, 40.0, 16.0)], [], []]
    assert seedx.boxes(pictures[1], ["the cat"] * 3)[1:] == [None, None]
    shown = draw_boxes(pictures[1], found[0])
    changed = {(x, y) for x in range(64) for y in range(32) if shown.getpixel((x, y)) != pictures[1].getpixel((x, y))}
    assert (24, 8) in changed and (32, 8) not in changed and shown is not pictures[1]
    assert seedx.ask(pictures[1], ["the cat"] * 3)[2] == "on the left"


def test_pictures_are_drawn_from_what_is_imagined(seedx, detokenizer_parts):
    """Bugs: texts and pictures in another order; noise that depends on the rest of the list."""
    texts = ["a red cat on grass by day", "a blue car", "two cats"]
    drawn, imagined = seedx.draw(texts, seed=3, **STEPS), seedx.imagine(texts)
    assert imagined.shape == (3, 64, 32) and [picture.size for picture in drawn] == [(32, 32)] * 3
    alone = seedx.decode(imagined, 3, **STEPS)
    assert [one.tobytes() for one in alone] == [one.tobytes() for one in drawn]
    same, other = (np.asarray(seedx.draw(texts[0], seed=seed, **STEPS)[0], dtype=float) for seed in (3, 4))
    assert np.abs(same - drawn[0]).max() <= 1 < np.abs(other - drawn[0]).max()
    one = seedx.imagine(texts[1])[0]
    assert (one - imagined[1]).abs().max() <= 1e-5 * one.abs().max() and (one - imagined[0]).abs().max() > 0.01


def test_saved_and_read(seedx, pictures, tmp_path):
    """Bug: a saved assistant that forgets the layout, the tokenizer or half of its weights."""
    seedx.save_pretrained(tmp_path)
    again = SeedX.from_pretrained(tmp_path)
    assert again.describe(pictures, 8) == seedx.describe(pictures, 8)
    assert torch.equal(again.imagine("a red cat"), seedx.imagine("a red cat"))
    assert again.processor.layout.output_tokens == 64 and again.processor.layout.max_length == 1024
    with pytest.raises(FileNotFoundError, match=r"nowhere.*missing"):
        SeedX.from_pretrained(tmp_path / "nowhere")


def test_wrong_requests_are_told(seedx, pictures):
    """Bug: a stack trace of torch in place of what was asked wrongly."""
    for request, error, said in (
        (lambda: seedx.draw(pictures[0]), TypeError, "got Image, expected texts to draw from"),
        (lambda: seedx.describe(["a.jpg"]), TypeError, "got str, expected pictures"),
        (lambda: seedx.ask("a cat", "is there a cat?"), TypeError, "got str, expected pictures; `draw` takes text"),
        (lambda: seedx.ask(pictures[:2], ["a", "b", "c"]), ValueError, "3 questions and 2 pictures"),
        (lambda: seedx.detect(pictures[0], "the quokka"), ValueError, "'<img></img>the quokka.*unknown words quokka"),
        (lambda: seedx.draw("a quokka"), ValueError, "unknown words quokka"),
        (lambda: seedx.ask(pictures[0], "is there a cat? " * 300), ValueError, "tokens where 1024 fit"),
        (lambda: seedx.describe([]), ValueError, "an empty list"),
    ):
        with pytest.raises(error, match=said):
            request()


def test_parts_that_do_not_fit(seedx, detokenizer_parts):
    """Bug: a de-tokenizer for another N reads nonsense from the language model."""
    with pytest.raises(ValueError, match="draws 64 embeddings of 32, the de-tokenizer reads 256 of 32"):
        SeedX(seedx.model, seedx.processor.layout, DetokenizerPipeline(**detokenizer_parts, vit_down=1))
