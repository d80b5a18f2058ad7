"""The language model's texts and what their likelihood should be."""

import json
import math
from collections import Counter
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from seedx_lite.data.documents import (
    APART,
    LESSON_QUESTIONS,
    LESSONS,
    SHARES,
    asked,
    document,
    encode_documents,
    encode_lessons,
    lesson,
    pack_documents,
)
from seedx_lite.data.tokenizer import IMAGE_TOKENS, MARKS, llm_tokenizer
from seedx_lite.evaluation.language_model import (
    _accepted,
    cross_entropies,
    log_probability_of_content,
    perplexity_ratio,
    right_answers,
)
from seedx_lite.models.text import token_losses
from seedx_lite.presets import load_preset
from seedx_lite.training.llama import lesson_losses, llama
from seedx_lite.world.language import LOCATION_TOKENS, Choices, full_caption, grounded_description
from seedx_lite.world.questions import questions
from seedx_lite.world.scene import Scene, Thing, sample_scene


@pytest.fixture(scope="module")
def tokenizer():
    return llm_tokenizer()


def test_ids_in_the_official_order(tokenizer):
    """Words, then image tokens, locations and marks; each of them one token, wherever it stands."""
    ids = tokenizer.convert_tokens_to_ids([*IMAGE_TOKENS, *LOCATION_TOKENS, *MARKS])
    assert ids == list(range(len(tokenizer) - len(ids), len(tokenizer))) and len(IMAGE_TOKENS) == 256
    assert tokenizer("red car<img><img_00000></img>").input_ids[-3:] == tokenizer.convert_tokens_to_ids(
        ["<img>", "<img_00000>", "</img>"]
    )


@pytest.mark.parametrize("form", SHARES)
def test_every_text_is_known_and_comes_back(tokenizer, form):
    """Bug: an unknown word in a prompt, or a line break that is lost."""
    for index in range(60):
        text = document(form, index, "train", np.random.default_rng(index))
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids and ids[0] == tokenizer.bos_token_id
        told = tokenizer.decode(ids[1:])
        assert (
            told.split()
            == text.lower()
            .replace("[inst]", "[ inst]")
            .replace("[/inst]", "[/ inst]")
            .replace("[[ <", "[[<")
            .replace("> ]]", ">]]")
            .split()
        )
        assert told.count("\n") == text.count("\n")


def test_unknown_words_are_told(tokenizer):
    with pytest.raises(ValueError, match="'a quokka': unknown words quokka"):
        encode_documents(tokenizer, ["a red cat", "a quokka"])
    with pytest.raises(ValueError, match="unknown words quokka"):
        encode_lessons(tokenizer, [[("a red cat", False), (" a quokka", True)]])


def test_documents_are_packed(tokenizer):
    """Bugs: padding amid the texts; a text that is cut off and begun again."""
    texts = [document("full", index, "train", np.random.default_rng(index)) for index in range(40)]
    rows = pack_documents(tokenizer, iter(texts), 3, 50)
    assert rows.shape == (3, 50) and not (rows == tokenizer.pad_token_id).any()
    stream = [token for text in texts for token in encode_documents(tokenizer, [text])[0].tolist()]
    assert rows.flatten().tolist() == stream[:150] and stream.count(tokenizer.bos_token_id) == 40


def test_answers_of_lessons_are_marked(tokenizer):
    """Bugs: a mark beside its answer, or on padding; unknown words."""
    rng = np.random.default_rng(0)
    lessons = [lesson(index, "train", rng) for index in range(40)]
    ids, marks = encode_lessons(tokenizer, lessons)
    assert ids.shape == marks.shape and not (ids == tokenizer.unk_token_id).any()
    for row, mark, pieces in zip(ids, marks, lessons, strict=True):
        whole = encode_documents(tokenizer, ["".join(text for text, _ in pieces)])[0]
        assert torch.equal(row[: len(whole)], whole) and (row[len(whole) :] == tokenizer.pad_token_id).all()
        told = "".join(text for text, answer in pieces if answer)
        assert row[mark].tolist() == tokenizer(told, add_special_tokens=False).input_ids
    counts = [sum(answer for _, answer in pieces) for pieces in lessons]
    assert max(counts) == LESSON_QUESTIONS and min(counts) >= 1


def test_lessons_ask_what_they_should(monkeypatch):
    """Bugs: topics that come twice where they should vary; lessons on telling things apart that ask for the sky."""

    def topics(ask, index):
        for name in LESSONS:
            monkeypatch.setitem(LESSONS, name, float(name == ask))
        told = lesson(index, "train", np.random.default_rng(index))
        about = {asked(question)[0]: question.topic for question in questions(sample_scene(index, "train"))}
        return [about.get(text, "box") for text, answer in told[1:] if not answer]

    for index in range(20):
        assert set(topics("boxes", index)) <= {"box"}
        assert len(varied := topics("varied", index)) == len(set(varied))
        apart, several = topics("apart", index), len(sample_scene(index, "train").things) > 1
        assert set(apart) <= APART if several else len(apart) == len(set(apart))
    assert any(len(some) > len(set(some)) for some in (topics("any", index) for index in range(20)))


class Knows(torch.nn.Module):
    """Is sure of the token that follows, but for the tokens `wrong`, and for those that `unsure` marks."""

    def __init__(self, tokenizer, wrong: str = "", unsure=None):
        super().__init__()
        self.tokenizer, self.wrong, self.unsure = tokenizer, tokenizer.convert_tokens_to_ids(wrong.split()), unsure

    def forward(self, input_ids, attention_mask=None):
        told = input_ids.roll(-1, 1)
        told = told.masked_fill(torch.isin(told, torch.tensor(self.wrong)), self.tokenizer.unk_token_id)
        logits = 50.0 * torch.nn.functional.one_hot(told, len(self.tokenizer))
        if self.unsure is not None:
            logits = logits.masked_fill(self.unsure.roll(-1, 1)[..., None], 0.0)
        return SimpleNamespace(logits=logits)


def test_right_answers_are_counted(tokenizer):
    """Bugs: an answer that is looked up one token too late; one that is right by its first token alone, or that goes
    on after its end."""
    told = right_answers(Knows(tokenizer), tokenizer, 3)
    assert {one["model"]["mean"] for one in told.values()} == {1} and told["all"]["frequent"]["mean"] < 1
    told = right_answers(Knows(tokenizer, "left right middle"), tokenizer, 3)  # the last words of places
    assert told["place"]["model"]["mean"] == 0 and told["ground"]["model"]["mean"] == 1
    assert right_answers(Knows(tokenizer, "</s>"), tokenizer, 3)["all"]["model"]["mean"] == 0


def test_the_loss_of_answers_is_that_of_the_marked_tokens(tokenizer):
    """Bugs: marks one token beside the answers; all tokens counted, or only those of the answers where all should."""
    ids, marks = encode_lessons(tokenizer, [lesson(index, "train", np.random.default_rng(1)) for index in range(8)])
    pad, most = tokenizer.pad_token_id, math.log(len(tokenizer))
    some, sure = lesson_losses(Knows(tokenizer, unsure=~marks), ids, marks, pad)
    rest, unsure = lesson_losses(Knows(tokenizer, unsure=marks), ids, marks, pad)
    assert sure < 1e-6 and unsure == pytest.approx(most)
    assert some + rest == pytest.approx(most) and rest == pytest.approx(most * marks.sum() / (ids[:, 1:] != pad).sum())


def test_padding_counts_for_nothing(tokenizer):
    """Bug: a short text beside a long one has another likelihood than alone."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**asdict(load_preset("smoke").llm))).eval()
    short, long = "a red cat", "a blue dog and a white boat, on grass by day"
    alone, _ = token_losses(model, encode_documents(tokenizer, [short]), tokenizer.pad_token_id)
    both, told = token_losses(model, encode_documents(tokenizer, [short, long]), tokenizer.pad_token_id)
    assert torch.allclose(both[0][told[0]], alone[0], atol=1e-5) and told.sum(1).tolist() == [4, 13]
    assert [len(row) for row in cross_entropies(model, tokenizer, [short, long])] == [4, 13]


def test_location_tokens_are_left_out(tokenizer):
    model = LlamaForCausalLM(LlamaConfig(**asdict(load_preset("smoke").llm))).eval()
    (row,) = cross_entropies(model, tokenizer, [grounded_description(sample_scene(3, things=2), 0)])
    assert np.isnan(row).sum() == 8


def test_wordings_of_a_caption_add_up_to_one():
    """The probabilities that `Choices` counts, over all captions of a scene, are those of the captions."""
    scene = sample_scene(0, things=2)
    seen, likely = Counter(), {}
    for seed in range(4000):
        choose = Choices(seed)
        text = full_caption(scene, choose)
        seen[text] += 1
        likely[text] = math.exp(choose.log_probability)
    assert sum(likely.values()) == pytest.approx(1, abs=0.02)
    for text, count in seen.items():
        assert count / 4000 == pytest.approx(likely[text], abs=4 * math.sqrt(likely[text] / 4000))


def test_content_is_as_likely_as_it_is_frequent():
    """Bug: orders of things, held-out combinations or refused draws counted twice or not at all."""
    many = [sample_scene(index, split) for split in ("train", "validation", "test") for index in range(1500)]
    shares = {"train": 0.8, "validation": 0.1, "test": 0.1}
    weights = [shares[split] / 1500 for split in shares for _ in range(1500)]
    one = Scene((Thing("ball", "red", 0.5, 0.8, 0.2),), "day", "grass")
    two = Scene((Thing("ball", "red", 0.2, 0.8, 0.2), Thing("cat", "blue", 0.5, 0.8, 0.3)), "day", "grass")

    def share(fits) -> float:
        return sum(w for scene, w in zip(many, weights, strict=True) if fits(scene))

    # Colours, skies and grounds are uniform: all scenes with a lone ball in the middle, and all with ball and cat.
    lone = share(lambda s: [t.kind for t in s.things] == ["ball"] and s.things[0].place == "middle")
    expected = math.exp(log_probability_of_content(one, 300)) * 7 * 3 * 4
    assert expected == pytest.approx(lone, rel=0.25)
    pair = share(lambda s: sorted(t.kind for t in s.things) == ["ball", "cat"])
    mention = math.exp(log_probability_of_content(two, 300, places=False)) * 7**2 * 3 * 4
    assert 2 * mention == pytest.approx(pair, rel=0.25)  # named in one order or the other
    assert 0.5 < _accepted() < 0.875


def test_estimates_of_rare_contents_are_not_biased():
    """Bug: the logarithm of a counted share, which is too small on average, and minus infinity without a hit."""
    scene = Scene((Thing("ball", "red", 0.2, 0.8, 0.2), Thing("cat", "blue", 0.8, 0.8, 0.3)), "day", "grass")
    few = [log_probability_of_content(scene, 1, seed) for seed in range(1500)]
    assert np.mean(few) == pytest.approx(log_probability_of_content(scene, 1500), abs=4 * np.std(few) / 1500**0.5)


def test_a_model_that_pays_a_tenth_more_for_each_token(tokenizer, monkeypatch):
    """Bug: the two cross-entropies are of different texts, or of a different number of tokens."""
    from seedx_lite.evaluation import language_model

    monkeypatch.setattr(language_model, "log_probability_of_content", lambda *args, **kwargs: -7.0)
    made = []

    def as_the_generator(model, tokenizer, texts):
        for index, text in enumerate(texts):
            choose = Choices(index)
            assert full_caption(sample_scene(index, "test"), choose) == text
            length = len(tokenizer(text).input_ids)
            total = 7.0 - choose.log_probability - math.log(SHARES["full"])
            made.append(np.full(length, total / length + 0.1))
        return made

    monkeypatch.setattr(language_model, "cross_entropies", as_the_generator)
    assert perplexity_ratio(None, tokenizer, "full", 12)["ratio"] == pytest.approx(math.exp(0.1))


def test_smoke_model_opens_with_plain_transformers(tmp_path):
    folder = llama(load_preset("smoke"), runs=tmp_path)
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) and not model.config.tie_word_embeddings
    assert (model.config.bos_token_id, model.config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    phases = [json.loads((folder / file).read_text()) for file in ("texts/training.json", "training.json")]
    assert ["answers" in phase["history"][-1] for phase in phases] == [False, True]


def test_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"llm\.vocab_size=12: expected"):
        llama(load_preset("smoke", ["llm.vocab_size=12"]), runs=tmp_path)
    for key in ("llm", "training.llama"):
        with pytest.raises(ValueError, match=f"has no `{key}`"):
            llama(load_preset("smoke", [f"{key}=null"]), runs=tmp_path)
