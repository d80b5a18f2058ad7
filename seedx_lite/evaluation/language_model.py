"""How close the language model comes to the grammar that made its texts.

The generator's own log-probability of a text is the best that any model could reach on average. It has two parts: how
likely a scene of such content is (no formula: things that find no room are drawn again, so the geometry is drawn until
such scenes have come up), and how likely its wording is (`Choices` counts). A model is judged by
exp(its cross-entropy per token - the generator's), on average 1 at best where the caption tells all that is scored.
"""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from seedx_lite.artifacts import read_manifest
from seedx_lite.data.documents import SHARES, asked, encode_documents, encode_lessons, scene_document
from seedx_lite.data.drawn import scenes
from seedx_lite.models.text import token_losses
from seedx_lite.world.language import LOCATION_TOKENS, Choices
from seedx_lite.world.scene import COLOURS, GROUNDS, KINDS, SKIES, Scene, place_things, sample_scene
from .answers import Told, compare_answers, frequent_answers, one_of_each
from .records import save_record
from .statistics import interval

SCENES, HITS = 512, 4  # of the record, and how often such a geometry has to come up for each of them
MOST_DRAWS = 1_000_000
FIRST = 12  # texts whose perplexity is stored apart, to be checked again
BEFORE = (0, 128, 448)  # tokens before a text, at which its perplexity is stored
PLAIN = {"sky": "day", "ground": "grass"}  # neither changes what fits where


def log_probability_of_content(scene: Scene, hits: int = HITS, seed: int = 0, places: bool = True) -> float:
    """An estimate without bias of that of what a full caption says, in nats; `places=False`: of the things in any order
    and place.

    The geometry is drawn until `hits` draws end in such a scene. If that is so at draw K, the sum of -1/k for k from
    `hits` to K - 1 is log of the chance of a hit on average (inverse binomial sampling); the log of a counted share is
    not. Splits are not told apart, since no model can know a hash; combinations that are held out have no probability.
    Raises ValueError for a scene that a million draws do not bring up.
    """
    rng, things = np.random.default_rng(seed), scene.from_left
    wanted = [(t.kind, t.pose, t.place) if places else (t.kind, t.pose) for t in things]
    chance, found = 0.0, 0
    for draw in range(1, MOST_DRAWS + 1):
        drawn = _place(rng, [things[i].kind for i in rng.permutation(len(things))])
        got = [(t.kind, t.pose, t.place) if places else (t.kind, t.pose) for t in drawn.from_left] if drawn else None
        found += got is not None and (got == wanted if places else Counter(got) == Counter(wanted))
        if found == hits:
            break
        chance -= 1 / draw if draw >= hits else 0
    else:
        raise ValueError(f"{wanted}: {found} of {MOST_DRAWS:,} draws of the narrow mix gave it, expected {hits}")
    kinds = Counter(thing.kind for thing in things)
    orders = math.factorial(len(things)) / math.prod(map(math.factorial, kinds.values())) if places else 1
    each = -len(things) * math.log(len(KINDS) * len(COLOURS))
    return math.log(orders) + chance + each - math.log(3 * len(SKIES) * len(GROUNDS)) - math.log(_accepted())


def _place(rng: np.random.Generator, kinds: Sequence[str]) -> Scene | None:
    """One draw of the geometry as `sample_scene` does it, of the narrow mix; colours do not matter."""
    empty = Scene((), light=0.5, horizon=round(float(rng.uniform(0.52, 0.60)), 3), **PLAIN)
    return place_things(rng, empty, kinds, ["red"] * len(kinds), float(rng.uniform(0.95, 1.05)))


@lru_cache(maxsize=1)
def _accepted(draws: int = 4000) -> float:
    """The share of all draws of one to three things that find room and show no held-out combination."""
    rng, total = np.random.default_rng(0), 0.0
    for count in (1, 2, 3):
        room = np.mean([_place(rng, rng.choice(KINDS, count)) is not None for _ in range(draws)])
        total += float(room) * (1 - 1 / len(COLOURS)) ** count / 3  # each kind has one colour that is held out
    return total


@torch.no_grad()
def cross_entropies(model, tokenizer, texts: Sequence[str], batch: int = 64) -> list[np.ndarray]:
    """Nats of each predicted token of each text, the end token included; location tokens are NaN."""
    locations, rows = set(tokenizer.convert_tokens_to_ids(list(LOCATION_TOKENS))), []
    for start in range(0, len(texts), batch):
        tokens = encode_documents(tokenizer, list(texts[start : start + batch]))
        losses, told = token_losses(model, tokens, tokenizer.pad_token_id)
        for loss, kept, ids in zip(losses, told, tokens[:, 1:], strict=True):
            place = torch.tensor([int(token) in locations for token in ids[kept]])
            rows.append(loss[kept].masked_fill(place, torch.nan).double().numpy())
    return rows


def perplexity_ratio(
    model, tokenizer, form: str, count: int, hits: int = HITS, split: str = "test"
) -> dict[str, float]:
    """exp(cross-entropy per token - the generator's) on `count` held-out texts, with the ends of its 95 % interval.

    form: `full`, or `grounded`, of which only the words count. There a ratio below 1 is possible: boxes tell something
    of the words that follow them (of three things each is drawn smaller), and the generator's number leaves that out.
    Also `perplexity` of the model, `first_perplexity` on the first texts, and `generator_perplexity`.
    """
    texts, best = [], []
    for index in tqdm(range(count), desc=f"{form} captions", disable=count < 50):
        scene, choose = sample_scene(index, split), Choices(index)
        texts.append(scene_document(form, scene, choose))
        content = log_probability_of_content(scene, hits, index, places=form == "full")
        best.append(-content - choose.log_probability - math.log(SHARES[form]))
    losses = cross_entropies(model, tokenizer, texts)
    words = np.array([np.isfinite(row).sum() for row in losses])
    excess = np.array([np.nansum(row) for row in losses]) - np.array(best)
    gap = interval(excess / words.mean())  # per token
    ours = sum(np.nansum(row) for row in losses) / words.sum()
    result = {"ratio": math.exp(gap["mean"]), "low": math.exp(gap["low"]), "high": math.exp(gap["high"])}
    first = math.exp(np.nanmean(np.concatenate(losses[:FIRST])))
    result |= {"perplexity": math.exp(ours), "first_perplexity": first}
    return result | {"generator_perplexity": math.exp(sum(best) / words.sum())}


@torch.no_grad()
def perplexity_after(model, tokenizer, before: int, count: int = 64) -> float:
    """That of full captions of the test split which stand behind `before` tokens of other texts, of which the last is
    whole. What came before has nothing to do with them, so it should change nothing."""

    def ids(index: int) -> list[int]:
        text = scene_document("full", sample_scene(index, "test"), Choices(index))
        return encode_documents(tokenizer, [text])[0].tolist()

    losses, others = [], count
    for index in range(count):
        own, context = ids(index), []
        while len(context) < before:
            context, others = ids(others) + context, others + 1
        context = context[len(context) - before :]
        losses.append(token_losses(model, torch.tensor([context + own]), tokenizer.pad_token_id)[0][0, before:])
    return torch.cat(losses).double().mean().exp().item()


@torch.no_grad()
def right_answers(model, tokenizer, count: int = SCENES, batch: int = 64) -> dict[str, Told]:
    """Shares of right answers, by topic and in `all`, to one question of each topic about each of the first `count`
    scenes of the test split: of the `model`, which has just read a full caption of the scene, and of the most
    `frequent` answer to the topic in training. An answer is right if each of its tokens is the likeliest, and then its
    end."""
    wanted, said = scenes("test", count), []
    chosen, newline = one_of_each(wanted), tokenizer("\n", add_special_tokens=False).input_ids[0]
    for start in range(0, len(chosen), batch):
        some = chosen[start : start + batch]
        turns = [(scene_document("full", wanted[place], Choices(place)), *asked(one)) for one, place in some]
        ids, marks = encode_lessons(tokenizer, [list(zip(turn, (False, False, True), strict=True)) for turn in turns])
        ends = marks.roll(1, 1) & ~marks  # each row has one answer, and then `</s>`
        likeliest = model(input_ids=ids).logits[:, :-1].argmax(-1)
        hit = (likeliest == ids[:, 1:]) | (ends[:, 1:] & (likeliest == newline))
        right = (hit | ~(marks | ends)[:, 1:]).all(1).tolist()
        said += [one.answer if so else "" for (one, _), so in zip(some, right, strict=True)]
    return compare_answers(chosen, {"model": said, "frequent": frequent_answers(chosen, (64, 64))})


def llama_report(folder: str | Path, count: int = SCENES, hits: int = HITS) -> dict[str, Any]:
    """The numbers of the language model on held-out texts, and the `tolerance` of its perplexities: three times the
    change of any when 64 texts of each form are read again in float64, and at least .001."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, about = PreTrainedTokenizerFast.from_pretrained(folder), read_manifest(folder)
    return {
        "preset": about["preset"],
        "seed": about["seed"],
        "artifacts": {"llama": about["id"]},
        "scenes": count,
        "hits": hits,
        **{form: perplexity_ratio(model, tokenizer, form, count, hits) for form in ("full", "grounded")},
        "answers": right_answers(model, tokenizer, count),
        "after": {str(before): perplexity_after(model, tokenizer, before) for before in BEFORE},
        "tolerance": max(0.001, 3 * _change_in_float64(model, tokenizer)),
    }


def _change_in_float64(model, tokenizer, count: int = 64) -> float:
    """By how much the perplexity of some texts changes, at most."""
    changes = []
    for form in ("full", "grounded"):
        texts = [scene_document(form, sample_scene(index, "test"), Choices(index)) for index in range(count)]
        one, other = (cross_entropies(each, tokenizer, texts) for each in (model, copy.deepcopy(model).double()))
        changes.append(abs(math.exp(np.nanmean(np.concatenate(one))) - math.exp(np.nanmean(np.concatenate(other)))))
    return max(changes)


def evaluate(folder: str | Path, runs: str | Path = "runs") -> Path:
    """Measures, writes the record `llama` and returns its path."""
    return save_record("llama", llama_report(folder), runs)
