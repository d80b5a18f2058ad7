"""How a sample becomes token ids: what is read, what is drawn, what is trained (paper §3.3, appendix B).

Official `src/data/sft_clm.py` and `image_text_pairs_clm.py`. A picture that is read is its sub-images, each
`<patch>…</patch>`, and the whole, `<img>…</img>`; one that is drawn is `<img>…</img>` alone. Between the marks stand
the image tokens, `<img_00000>` and so on. Where the official code draws at random, the caller says which branch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from PIL import Image
from transformers import PreTrainedTokenizerBase

from .anyres import GRIDS, Centre, Size, process_anyres_image, tile
from .prompts import INSTRUCTION
from .tokenizer import IMAGE_TOKENS, check_words

IGNORED = -100  # the label of a token that is not trained
Piece = tuple[str, bool]  # a text that is tokenized by itself, and whether it is trained


class Turn(NamedTuple):
    """A question, beside pictures of the sizes `shown`, and its answer: words, a picture of the size `drawn`, or
    both."""

    question: str
    answer: str = ""
    shown: tuple[Size, ...] = ()
    drawn: Size | None = None


@dataclass(frozen=True)
class Sample:
    """One sample without padding: L positions, and P sub-images of its pictures, in order, each whole one last."""

    input_ids: list[int]  # L
    labels: list[int]  # L, each at the place of its token; the language model shifts them
    ids_cmp_mask: list[bool]  # L, where pictures are read
    ids_gen_mask: list[bool]  # L, where they are drawn
    embeds_cmp_mask: list[bool]  # P, which sub-images are read
    embeds_gen_mask: list[bool]  # P, which are drawn: of a picture only the whole
    patch_positions: list[Centre] | None  # P; None where pictures are not cut
    patch_lengths: list[int]  # sub-images of each picture


@dataclass(frozen=True)
class Layout:
    """How all samples of a training, or the prompts of an assistant, are laid out.

    Args:
        tokenizer: one that knows the image tokens and the marks; `llm_tokenizer()` or LLaMA's with them added.
        max_length: most tokens of a sample, the context of the language model.
        input_tokens, output_tokens: image tokens of a picture that is read, and of one that is drawn (N).
        grids, base_resolution: how pictures are cut, see `anyres.py`; None: they are not cut.
        instruction, system_message, turn_sep: the form of a question, what stands before the first one, and before
            each of the others.
        min_resolution, min_aspect_ratio: smallest side and smallest ratio of the sides of a picture.
        official: as in the released code, a picture of one square is shown as that and again as the whole; those two
            limits are not applied to conversations; samples of which nothing is trained pass; an edit of exactly
            `max_length` does not; and what is drawn counts in every sub-image when it is asked whether a caption is too
            long to be drawn.

    Every method about samples raises ValueError for one that cannot be used, saying what to do.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    input_tokens: int = 64
    output_tokens: int = 64
    grids: Sequence[str] | None = GRIDS
    base_resolution: int = 448
    instruction: str = INSTRUCTION
    system_message: str = ""
    turn_sep: str = "\n"
    min_resolution: int = 0
    min_aspect_ratio: float = 0.0
    official: bool = False

    def __post_init__(self) -> None:
        known, most = len(self._image_ids), max(self.input_tokens, self.output_tokens)
        if not 0 < min(self.input_tokens, self.output_tokens) <= most <= known:
            given = f"input_tokens={self.input_tokens}, output_tokens={self.output_tokens}"
            raise ValueError(f"{given}: expected 1 to {known}, as many image tokens as the tokenizer knows")

    def conversation(self, turns: Sequence[str], size: Size | None = None, image_first: bool = True) -> Sample:
        """Question, answer, question, answer …, about a picture of `size` that is shown before the first question, or
        after it. Every answer is trained; what is beyond `max_length` is cut off."""
        if not turns or len(turns) % 2:
            raise ValueError(f"{len(turns)} turns; expected pairs of question and answer")
        told = [Turn(*pair) for pair in zip(turns[::2], turns[1::2], strict=True)]
        told[0] = told[0]._replace(shown=() if size is None else (size,))
        return self._sample(*self._told(told, image_first, check=(not self.official, False)))

    def edit(
        self, instruction: str, source: Size, target: Size, response: str = "", image_first: bool = True
    ) -> Sample:
        """An instruction, "" for a dropped one, beside the picture `source`, and the answer: words and the picture
        `target`. Trained are the words, `<img>` and `</s>`. Raises ValueError for one that is too long."""
        told = [Turn(instruction, response, (source,), target)]
        most = self.max_length - self.official
        return self._sample(*self._told(told, image_first, check=(True, not self.official)), most=most)

    def dialogue(self, turns: Sequence[Turn], image_first: bool = True) -> Sample:
        """Any turns, with pictures in the questions and in the answers. As in a conversation every answer is trained;
        a dialogue that is drawn in must not be too long."""
        if not turns:
            raise ValueError("a dialogue without turns; give one or more")
        drawn = any(turn.drawn for turn in turns)
        return self._sample(*self._told(turns, image_first), most=self.max_length if drawn else None)

    def caption(
        self, caption: str, size: Size, image_first: bool = True, request: str | None = None, answer: str = ""
    ) -> Sample:
        """A picture, then its caption, which is trained; or the caption, then the picture, of which `<img>` and `</s>`
        are trained. With `request` ("Draw a picture:") the caption becomes an instruction, and `answer` follows it. A
        caption that is too long to be drawn follows the picture, as officially, and is cut off."""
        picture = self._centres(size)
        text = caption
        if request is not None:
            text = f"{self.instruction.format(instruction=f'{request} {caption}')} {answer}"
        drawn = (self.output_tokens + 2) * (len(picture) if self.official else 1)
        if image_first or len(self._encode(text)) + drawn + 2 > self.max_length:
            return self._sample([(self._shown(picture), False), (text, True)], read=[picture])
        return self._sample([(text, False), (self._drawn, True)], drawn=[picture])

    def prompt(self, text: str, sizes: Sequence[Size] = (), draw: bool = False) -> Sample:
        """What an assistant is asked: pictures, then `text`, in one of the forms of `prompts.py`; `draw`: ends with
        `<img>`. Without `</s>` and labels. Raises ValueError for one that is too long."""
        pictures = [self._centres(size, check=False) for size in sizes]
        opening = self.instruction.partition("{")[0]  # pictures belong into the instruction
        opening = opening if text.startswith(opening) else ""
        text = opening + "".join(map(self._shown, pictures)) + text.removeprefix(opening)
        return self._sample([(text + "<img>" * draw, False)], pictures, answered=False)

    def ask(self, turns: Sequence[Turn], draw: bool = False) -> Sample:
        """A dialogue whose last question is to be answered; `draw`: with a picture at once. Of the pictures only those
        that are read come with it: one that was drawn before is there as its image tokens, as in training. Raises
        ValueError for one that is too long, and for a last turn that has its answer already."""
        if not turns or turns[-1].answer or turns[-1].drawn:
            raise ValueError("a dialogue ends with a question; leave its last answer out")
        pieces, read, drawn = self._told(turns, True, check=(True, False))
        told = self._sample([*pieces[:-1], ("<img>" * draw, False)], read, drawn, answered=False)
        centres = [centre for picture in read for centre in picture]
        return replace(
            told,
            embeds_cmp_mask=[True] * len(centres),
            embeds_gen_mask=[False] * len(centres),
            patch_positions=centres if self.grids else None,
            patch_lengths=[len(picture) for picture in read],
        )

    def squares(self, picture: Image.Image) -> list[Image.Image]:
        """The sub-images of a picture, the whole last, as the vision encoder reads them: one for each position."""
        side, count = self.base_resolution, len(self._centres(picture.size, check=False))
        return process_anyres_image(picture, self.grids or ("1x1",), side)[0][-count:]

    # Parts

    def _told(
        self, turns: Sequence[Turn], image_first: bool, check: tuple[bool, bool] = (True, True)
    ) -> tuple[list[Piece], list[tuple[Centre, ...]], list[tuple[Centre, ...]]]:
        """The pieces of turns, and where the sub-images of what is read and of what is drawn lie. check: whether the
        sizes of either must be within the limits."""
        pieces, read, drawn, start = [*self._system], [], [], ""
        for turn in turns:
            pictures = [self._centres(size, check[0]) for size in turn.shown]
            shown, answer = "".join(map(self._shown, pictures)), turn.answer
            question = shown + turn.question if image_first else turn.question + shown
            if turn.drawn:
                drawn.append(self._centres(turn.drawn, check[1]))
                answer += self._drawn
            pieces += [(start + self.instruction.format(instruction=question), False), (answer, True)]
            read, start = read + pictures, self.turn_sep
        return pieces, read, drawn

    @cached_property
    def _image_ids(self) -> frozenset[int]:
        known = self.tokenizer.get_vocab()
        return frozenset(known[token] for token in IMAGE_TOKENS if token in known)

    @cached_property
    def _closing_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids("</img>")

    @property
    def _system(self) -> list[Piece]:
        return [(self.system_message.removesuffix("\n") + "\n", False)] if self.system_message else []

    @property
    def _drawn(self) -> str:
        return f"<img>{''.join(IMAGE_TOKENS[: self.output_tokens])}</img>"

    def _shown(self, picture: Sequence[Centre]) -> str:
        tokens = "".join(IMAGE_TOKENS[: self.input_tokens])
        patches = f"<patch>{tokens}</patch>" * (len(picture) - 1)
        return f"{patches}<img>{tokens}</img>" if picture else ""

    def _centres(self, size: Size, check: bool = True) -> tuple[Centre, ...]:
        """Where the sub-images of a picture lie, the whole one last."""
        if check and (min(size) < self.min_resolution or min(size) < self.min_aspect_ratio * max(size)):
            wanted = f"sides of {self.min_resolution} or more, and a ratio of {self.min_aspect_ratio} or more"
            raise ValueError(f"a picture of {size[0]}×{size[1]} px; expected {wanted}: leave it out")
        positions = tile(size, self.grids, self.base_resolution).positions if self.grids else ((0.5, 0.5),)
        return positions if self.official or len(positions) > 2 else positions[-1:]

    def _encode(self, text: str) -> list[int]:
        text = re.sub(r"[^\S\n]+", " ", text)  # the tokenizer knows no other blanks than spaces and line breaks
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if self.tokenizer.unk_token_id in ids:
            check_words(self.tokenizer, [re.sub(r"<img_\d+>", "", text)])
        return ids

    def _sample(
        self,
        pieces: Sequence[Piece],
        read: Sequence[Sequence[Centre]] = (),
        drawn: Sequence[Sequence[Centre]] = (),
        most: int | None = None,
        answered: bool = True,
    ) -> Sample:
        """Pieces one after the other between `<s>` and, where `answered`, `</s>`. Image tokens of trained pieces are
        drawn, those of the others read. A sample may be cut off at `max_length`, but not with `most` or a prompt."""
        ids, labels, cmp, gen = [self.tokenizer.bos_token_id], [IGNORED], [False], [False]
        for text, trained in pieces:
            new = self._encode(text)
            image = [token in self._image_ids for token in new]
            told = [trained and not i and token != self._closing_id for token, i in zip(new, image, strict=True)]
            ids += new
            labels += [token if tell else IGNORED for token, tell in zip(new, told, strict=True)]
            cmp += [i and not trained for i in image]
            gen += [i and trained for i in image]
        if answered:
            end = self.tokenizer.eos_token_id
            ids, labels, cmp, gen = [*ids, end], [*labels, end], [*cmp, False], [*gen, False]
        sub_images = sum(map(len, read))
        for mask, wanted in ((cmp, sub_images * self.input_tokens), (gen, len(drawn) * self.output_tokens)):
            if sum(mask) != wanted:
                raise ValueError(f"{sum(mask)} image tokens, expected {wanted}: take <img_…> out of the texts")
        self._check_length(ids, cmp, self.max_length if most is None else most, answered and most is None)
        ids, labels, cmp, gen = (row[: self.max_length] for row in (ids, labels, cmp, gen))
        if answered and not self.official and all(label == IGNORED for label in labels):
            raise ValueError(f"nothing is left to train in {self.max_length} tokens: shorten what comes before")
        whole = [place == len(picture) - 1 for picture in drawn for place in range(len(picture))]
        return Sample(
            input_ids=ids,
            labels=labels,
            ids_cmp_mask=cmp,
            ids_gen_mask=gen,
            embeds_cmp_mask=[True] * sub_images + [False] * len(whole),
            embeds_gen_mask=[False] * sub_images + whole,
            patch_positions=[centre for picture in (*read, *drawn) for centre in picture] if self.grids else None,
            patch_lengths=[len(picture) for picture in (*read, *drawn)],
        )

    def _check_length(self, ids: list[int], cmp: list[bool], most: int, may_be_cut: bool) -> None:
        if len(ids) > most and not may_be_cut:
            raise ValueError(f"{len(ids)} tokens where {most} fit: shorten the text, or cut the picture less")
        end = max((place for place, read in enumerate(cmp) if read), default=-2) + 2  # after </img>
        if end > self.max_length:
            wanted = f"its picture alone needs {end}"
            raise ValueError(f"{self.max_length} tokens fit, but {wanted}: cut it less (`grids`), or raise max_length")
