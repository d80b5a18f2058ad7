"""How the multimodal language model answers: text token by token, and each picture in one pass.

Axes: B prompts, L positions of the longest, D channels of the language model, N image tokens of a picture, Q visual
embeddings that are predicted for it, K their channels, V vocabulary, W positions of one pass, S of all passes so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessor


class Generated(NamedTuple):
    """What the model answers to one prompt."""

    sequence: list[int]  # all new ids, those of pictures and of the end included
    text_ids: list[int]  # without those of pictures (official: `</img>` stays)
    pictures: list[Tensor]  # [Q, K] each, predicted visual embeddings


class ImageTokenProcessor(LogitsProcessor):
    """Scores [B, V] of the next token: after `<img>` and after an image token only the next of the chain is left, and
    elsewhere no image token and no `</img>`. Official: `AutoImageTokenGenerationProcessor`, which raises the next of
    the chain above all others, and elsewhere gives image tokens a score of 0: the highest where all are negative.
    never: ids of image tokens that are in no chain.
    """

    def __init__(self, chain: Sequence[int], official: bool = False, never: Sequence[int] = ()) -> None:
        self.chain, self.official, self.never = list(chain), official, list(never)
        self.next = dict(zip(self.chain, self.chain[1:], strict=False))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Only the last id of each row of `input_ids` [B, L] counts; returns new scores."""
        changed = scores.clone()
        changed[:, self.never] = -torch.inf
        for row, last in enumerate(input_ids[:, -1].tolist()):
            if last not in self.next:
                changed[row, self.chain[1:]] = 0.0 if self.official else -torch.inf
            elif self.official:
                changed[row, self.next[last]] = scores[row].max() + 10
            else:
                changed[row] = -torch.inf
                changed[row, self.next[last]] = scores[row, self.next[last]]
        return changed


def generate(
    llm: nn.Module,
    output_resampler: Callable[[Tensor], Tensor],
    embeds: Tensor,
    attention_mask: Tensor,
    last: Sequence[int],
    chain: Sequence[int],
    max_new_tokens: int = 120,
    force_image: bool = False,
    official: bool = False,
    never: Sequence[int] = (),
    stream: Callable[[int, list[int]], None] | None = None,
) -> list[Generated]:
    """The most likely continuation of each prompt.

    After `<img>` the inputs of the N image tokens are known, so that they go through the model together with `</img>`,
    on the cache. After `</img>` the text goes on, until `</s>`.

    Args:
        llm: a `LlamaForCausalLM`, with or without LoRA.
        output_resampler: hidden states [·, N, D] → visual embeddings [·, Q, K].
        embeds, attention_mask, last: the prompts [B, L, D], padded on the left; [B, L]; and the last id of each.
        chain: `<img>`, N image tokens, `</img>`. never: image tokens beyond N.
        max_new_tokens: a picture is begun only where it fits (official: it is cut off, and lost).
        force_image: an answer without a picture gets one after its text.
        stream: called with the number of a prompt and its new ids, whenever there are some.

    Raises ValueError for prompts that do not fit the context, are padded on the right or end inside a picture, and
    where a picture that has to be drawn does not fit `max_new_tokens`.
    """
    config, head, words = llm.config, llm.get_output_embeddings(), llm.get_input_embeddings()
    lengths, device = attention_mask.sum(1).tolist(), embeds.device
    if not attention_mask[:, -1].all():
        raise ValueError("a prompt ends with padding: pad prompts on the left")
    answers = [_Answer(*prompt) for prompt in zip(last, lengths, strict=True)]
    for answer in answers:
        answer.open(chain, config.max_position_embeddings, max_new_tokens, force_image, official)
    process = ImageTokenProcessor(chain, official, never)
    rest = {token: chain[i + 1 :] for i, token in enumerate(chain[:-1])}
    ends = torch.tensor([] if config.eos_token_id is None else config.eos_token_id).flatten().tolist()
    run = _Passes(llm)
    hidden = run(embeds, attention_mask)  # [B, L, D]
    while True:
        before = torch.tensor([[answer.last] for answer in answers], device=device)
        scores = process(before, head(hidden[:, -1]).float())  # [B, V]
        if not official:
            no_room = [answer.room < len(chain) for answer in answers]
            scores[torch.tensor(no_room, device=device), chain[0]] = -torch.inf
        blocks = []
        for answer, token in zip(answers, scores.argmax(1).tolist(), strict=True):
            if force_image and not answer.pictures and (token in ends or answer.room == len(chain)):
                token = chain[0]
            blocks.append(answer.add(rest.get(answer.last) or [token, *rest.get(token, [])], ends))
            if stream and blocks[-1]:
                stream(len(blocks) - 1, blocks[-1])
        drawn = [len(block) > 1 and block[-1] == chain[-1] for block in blocks]
        if not any(drawn) and not any(answer.room for answer in answers):
            return [answer.result(chain, official) for answer in answers]
        width = max(map(len, blocks))
        ids = [[chain[0]] * (width - len(block)) + block for block in blocks]  # any id will do where the mask is 0
        mask = [[0] * (width - len(block)) + [1] * len(block) for block in blocks]
        hidden = run(words(torch.tensor(ids, device=device)), torch.tensor(mask, device=device))  # [B, W, D]
        if any(drawn):
            states = hidden[torch.tensor(drawn, device=device), 1 - len(chain) : -1]  # [drawn, N, D]
            answered = (answer for answer, has in zip(answers, drawn, strict=True) if has)
            for answer, picture in zip(answered, output_resampler(states), strict=True):
                answer.pictures.append(picture)


@dataclass
class _Answer:
    """The answer to one prompt while it grows; no room is left once it is complete."""

    last: int  # the last id so far, at first that of the prompt
    length: int  # of the prompt
    room: int = 0  # new ids that still fit
    new: list[int] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)

    def open(self, chain: Sequence[int], context: int, most: int, force_image: bool, official: bool) -> None:
        """Make room for `most` new ids. Raises ValueError as `generate` does."""
        self.room = min(most, context - self.length)
        drawn = len(chain) - 1 if self.last == chain[0] else len(chain) if force_image else 1
        if self.room < (1 if official else drawn):
            what = f"a prompt of {self.length} tokens in a context of {context} with max_new_tokens={most}"
            raise ValueError(f"{what} leaves {self.room} where {drawn} are needed: shorten it or raise that")
        if self.last in chain[1:-1]:
            raise ValueError("a prompt ends inside a picture: end it with <img>, or after </img>")

    def add(self, block: list[int], ends: Sequence[int]) -> list[int]:
        """Take up new ids as far as there is room; returns those taken up, which the model has to read."""
        block = block[: self.room]
        if block:
            self.last, self.room = block[-1], self.room - len(block)
            self.new += block
            if self.last in ends:
                self.room = 0
        return block

    def result(self, chain: Sequence[int], official: bool) -> Generated:
        """What the caller gets; a picture that was cut off leaves its image tokens in the text (official only)."""
        closed = [i for i, token in enumerate(self.new) if token == chain[-1]]
        inside = {place for end in closed for place in range(end - len(chain) + 2, end)}
        dropped = {chain[0]} if official else {chain[0], chain[-1]}
        text = [token for place, token in enumerate(self.new) if place not in inside and token not in dropped]
        return Generated(self.new, text, self.pictures)


class _Passes:
    """Passes through the decoder, each on the cache of those before; the rows of each are padded on the left."""

    def __init__(self, llm: nn.Module) -> None:
        self.decoder, self.cache, self.mask = llm.get_decoder(), DynamicCache(config=llm.config), None

    def __call__(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """embeds [B, W, D], mask [B, W] → hidden states [B, W, D], after the last norm."""
        self.mask = mask if self.mask is None else torch.cat([self.mask, mask], dim=1)  # [B, S]
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -mask.shape[1] :]
        settings = {"attention_mask": self.mask, "position_ids": positions, "past_key_values": self.cache}
        return self.decoder(inputs_embeds=embeds, use_cache=True, **settings).last_hidden_state
