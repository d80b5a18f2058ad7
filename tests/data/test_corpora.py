"""What the language model is trained on: every sample in its share, in its order, or reported."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from seedx_lite.data import captions, conversations, edits
from seedx_lite.data.captions import CaptionPair
from seedx_lite.data.conversations import Conversation
from seedx_lite.data.corpora import BLOCK, FORMS, Files, Mixture, Scenes, scene_sample
from seedx_lite.data.edits import EditPair
from seedx_lite.data.layout import Layout
from seedx_lite.data.tokenizer import llm_tokenizer
from seedx_lite.world.language import full_caption
from seedx_lite.world.scene import sample_scene


@pytest.fixture(scope="module")
def layout():
    tokens = {"input_tokens": 4, "output_tokens": 9}
    return Layout(llm_tokenizer(), max_length=200, **tokens, base_resolution=32, instruction="{instruction}")


def said(layout, sample):
    """Its words; [shown] and [drawn] stand for pictures."""
    ids = layout.tokenizer.convert_ids_to_tokens(sample.input_ids)
    marks = zip(ids, sample.ids_cmp_mask, sample.ids_gen_mask, strict=True)
    text = " ".join("[shown]" if cmp else "[drawn]" if gen else token for token, cmp, gen in marks)
    return text.replace(" [shown]" * 4, " [shown]").replace(" [drawn]" * 9, " [drawn]")


def test_forms_of_a_scene(layout):
    """Bug: a form that asks for something else than what the assistant will be asked for."""
    scene, rng = sample_scene(5, size=(32, 32)), np.random.default_rng(0)
    texts = {form: said(layout, scene_sample(layout, form, scene, rng)) for form in FORMS}
    assert {form for form, text in texts.items() if "[drawn]" in text} == {"drawing"}
    assert all("<s> <img> [shown] </img>" in text for form, text in texts.items() if form != "drawing")
    assert texts["drawing"].endswith("<img> [drawn] </img> </s>")
    assert "[[ <box_start> <loc-" in texts["detection"] and "question" not in texts["detection"]
    assert "and where ? \n answer :" in texts["grounded"] and "<box_end> ]]" in texts["grounded"]
    assert texts["questions"].count("question :") == texts["questions"].count("answer :") >= 1
    with pytest.raises(ValueError, match="form is one of caption"):
        scene_sample(layout, "poem", scene, rng)


def test_scenes_and_their_squares(layout):
    """Bugs: a scene beside the picture of another; wide pictures that are to be drawn, or in the wrong order."""
    narrow, wide = Scenes(layout, 6, (32, 32)), Scenes(layout, 4, (64, 32))
    with pytest.raises(ValueError, match="64x32 px cannot be drawn; expected 32 px a side"):
        Scenes(layout, 4, (64, 32), forms={"drawing": 1.0})
    assert len(narrow) == 6 and len(wide) == 4 and wide.squares.shape == (12, 32, 32, 3)
    rng = np.random.default_rng(1)
    for corpus, size in ((narrow, (32, 32)), (wide, (64, 32))):
        words = {str(full_caption(sample_scene(3, size=size), seed)) for seed in range(300)}
        told = [said(layout, corpus.sample(3, rng)[0]) for _ in range(120)]
        shown = [text for text in told if "question" not in text and "[[" not in text and "[drawn]" not in text]
        assert shown and all(any(" ".join(layout.tokenizer.tokenize(w)) in text for w in words) for text in shown)
        assert any("[drawn]" in text for text in told) == (corpus is narrow)
    drawn = [wide.sample(2, rng) for _ in range(60)]
    assert {(len(rows), sum(sample.embeds_cmp_mask)) for sample, rows in drawn} == {(3, 3), (1, 1)}
    assert 8 < sum(len(rows) == 1 for _, rows in drawn) < 32, "a third as a whole, in one square"
    assert {tuple(rows) for _, rows in drawn} == {(6, 7, 8), (8,)}
    left, right, whole = (wide.squares[row] for row in wide.rows(2))
    halves = Image.fromarray(np.concatenate([left, right], axis=1)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(halves, dtype=float) - whole).mean() < 8


@pytest.fixture
def folder(tmp_path):
    """Three files with 2 conversations, 3 captions and 1 edit; pictures of one colour."""
    for number in range(4):
        Image.new("RGB", (32, 32), (50 * number, 0, 0)).save(tmp_path / f"{number}.jpg")
    talk = [Conversation(tmp_path / "0.jpg", ("what is there?", "a cat")), Conversation(None, ("a cat?", "yes"))]
    conversations.write(tmp_path / "a.jsonl", talk)
    jpeg = (tmp_path / "1.jpg").read_bytes()
    captions.write(tmp_path / "b.tar", [CaptionPair(str(i), jpeg, "a red cat on grass") for i in range(3)])
    edits.write(tmp_path / "c.jsonl", [EditPair(tmp_path / "2.jpg", tmp_path / "3.jpg", "make it night", "a cat")])
    return tmp_path


def test_files_in_all_formats(layout, folder):
    """Bugs: a picture beside the text of another file; captions in one order only; edits that read their target."""
    corpus, rng = Files(layout, folder), np.random.default_rng(0)
    assert len(corpus) == 6 and not corpus.problems
    reds = [[round(corpus.squares[row, 0, 0, 0] / 50) for row in corpus.sample(i, rng)[1]] for i in range(6)]
    assert reds == [[0], [], [1], [1], [1], [2, 3]]
    orders = {said(layout, corpus.sample(2, rng)[0]).index("a red cat") for _ in range(20)}
    assert len(orders) == 2
    assert said(layout, corpus.sample(0, rng)[0]).startswith("<s> <img> [shown] </img> question : what is there ?")
    edit = corpus.sample(5, rng)[0]
    assert edit.embeds_cmp_mask == [True, False] and edit.embeds_gen_mask == [False, True]


def test_samples_that_cannot_be_used_are_told(layout, folder, capsys):
    """Bug: bad samples vanish, and a training goes on with what little is left."""
    with (folder / "a.jsonl").open("a") as file:
        file.write('{"image": "0.jpg", "data": ["what is there?", "a quokka"]}\nno json\n')
    (folder / "1.jpg").write_bytes(b"no picture")
    corpus = Files(layout, folder, most_lost=0.5)
    assert len(corpus) == 6 and [problem.place.rpartition(":")[2] for problem in corpus.problems] == ["3", "4"]
    assert "2 of 8 samples cannot be used" in (out := capsys.readouterr().out) and "quokka" in out
    with pytest.raises(ValueError, match=r"2 of 8 samples cannot be used.*a\.jsonl:3.*expected 5% at most"):
        Files(layout, folder)
    (folder / "0.jpg").write_bytes(b"no picture")
    assert len(Files(layout, folder, most_lost=0.5).problems) == 3
    Image.new("RGB", (32, 64)).save(folder / "3.jpg")
    assert "a source of 32x32 px and a target of 32x64 px" in Files(layout, folder, most_lost=0.8).problems[-1].reason
    with pytest.raises(ValueError, match="0 of 0 samples"):
        (folder / "empty").mkdir()
        Files(layout, folder / "empty")


class Numbers:
    """A corpus whose samples are their own index."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def sample(self, index, rng):
        return (index, rng.random()), []


def test_mixture_keeps_shares_and_epochs():
    """Bugs: weights that are met on average only; samples that come twice in an epoch, or never; one order for all."""
    mixture = Mixture({"a": Numbers(7), "b": Numbers(50)}, {"a": 0.3, "b": 0.7}, seed=4)
    drawn = [mixture.sample(number)[:2] for number in range(5 * BLOCK)]
    for start in range(0, 5 * BLOCK, BLOCK):
        assert Counter(name for name, _ in drawn[start : start + BLOCK]) == {"a": 30, "b": 70}
    for name, count, times in (("a", 7, {21, 22}), ("b", 50, {7})):
        told = Counter(sample[0] for own, sample in drawn if own == name)
        assert len(told) == count and set(told.values()) == times
    orders = [[sample[0] for own, sample in drawn[start : start + BLOCK] if own == "b"] for start in (0, BLOCK)]
    assert orders[0] != orders[1]
    assert len({name for name, _ in drawn[:10]}) == 2, "blocks are shuffled"


def test_mixture_goes_on_anywhere():
    """Bug: a resumed run sees other samples than one that was never stopped; another seed sees the same."""
    corpora, weights = {"a": Numbers(7), "b": Numbers(5)}, {"a": 1, "b": 1}
    straight = [Mixture(corpora, weights, seed=1)]
    straight = [straight[0].sample(number) for number in range(300)]
    assert Mixture(corpora, weights, seed=1).sample(217) == straight[217]
    assert [Mixture(corpora, weights, seed=2).sample(number) for number in range(50)] != straight[:50]
    with pytest.raises(ValueError, match="at least 1/100"):
        Mixture(corpora, {"a": 1, "b": 1000})
    with pytest.raises(ValueError, match="give one weight for each"):
        Mixture(corpora, {"a": 1})
