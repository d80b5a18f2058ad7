"""SEED-X as a user calls it: describe a picture, answer questions about it, find things in it, draw.

Lists in, lists out; a single picture or text stands for a list of one. What the language model draws are visual
embeddings; the de-tokenizer makes the picture.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from seedx_lite.artifacts import check_upstream
from seedx_lite.data.layout import Layout, Turn
from seedx_lite.data.pictures import upright_rgb
from seedx_lite.data.prompts import READING
from seedx_lite.models.generation import Generated
from seedx_lite.models.mllm import ContinuousLVLM
from seedx_lite.world.language import BOX_START, DETECTION_PROMPT
from .detokenizer import DetokenizerPipeline
from .dialogue import Box, Message, Reply, boxes_of, in_pixels, read_history, reply
from .processor import LVLMProcessor
from .text_to_image import noise

Pictures = Image.Image | Sequence[Image.Image]
T = TypeVar("T")
BATCH = 32  # prompts at a time


class SeedX:
    """The language model between the vision encoder and the de-tokenizer, which holds that encoder.

    Raises ValueError where the two do not fit: another number of visual embeddings, or of their channels.
    """

    def __init__(self, model: ContinuousLVLM, layout: Layout, detokenizer: DetokenizerPipeline) -> None:
        self.model, self.processor, self.detokenizer = model.eval(), LVLMProcessor(layout), detokenizer
        detokenizer.set_progress_bar_config(disable=True)
        out, vit = model.config.output_resampler, detokenizer.vit.config
        drawn = out["grid_size"] ** 2, out["embed_dim"]
        if drawn != (reads := (vit["n_queries"] // detokenizer.config.vit_down, vit["output_dim"])):
            told = f"the language model draws {drawn[0]} embeddings of {drawn[1]}, the de-tokenizer reads {reads[0]} of"
            raise ValueError(f"{told} {reads[1]}; give one that was trained for the same N, on the same vision encoder")

    @classmethod
    def from_artifacts(cls, mllm: str | Path, vit: str | Path, sdxl: str | Path, adapter: str | Path) -> Self:
        """From the folders of the stages. Raises FileNotFoundError or ValueError that names the file and what to do,
        also where they were not trained one upon the other."""
        check_upstream(mllm, vit)
        return cls._read(Path(mllm), DetokenizerPipeline.from_artifacts(vit, sdxl, adapter))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read a folder of `save_pretrained`, in float32. Raises FileNotFoundError or ValueError as the parts do."""
        return cls._read(Path(folder, "mllm"), DetokenizerPipeline.from_pretrained(Path(folder, "detokenizer")))

    @classmethod
    def _read(cls, folder: Path, detokenizer: DetokenizerPipeline) -> Self:
        model = ContinuousLVLM.from_pretrained(folder, dtype=torch.float32)
        config, tokenizer = model.config, PreTrainedTokenizerFast.from_pretrained(folder)
        tokens = config.input_resampler["grid_size"] ** 2, len(config.image_token_ids)
        settings = {"base_resolution": detokenizer.vit.image_size, "instruction": "{instruction}"}
        layout = Layout(tokenizer, config.llm.max_position_embeddings, *tokens, **settings)
        return cls(model, layout, detokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `mllm/` (model and tokenizer) and `detokenizer/` (a whole pipeline, with the vision encoder)."""
        for part in (self.model, self.processor.layout.tokenizer):
            part.save_pretrained(Path(folder, "mllm"))
        self.detokenizer.save_pretrained(Path(folder, "detokenizer"))

    # What a user asks for. All raise TypeError for something else than pictures or texts, and ValueError for words that
    # the tokenizer does not know, what does not fit the context, and lists that are not of one length.

    def describe(self, pictures: Pictures, max_new_tokens: int = 120) -> list[str]:
        """A caption of each picture."""
        shown = _shown(pictures, "pictures")
        return self._texts([""] * len(shown), shown, max_new_tokens)

    def ask(
        self, pictures: Pictures, questions: str | Sequence[str], max_new_tokens: int = 40, blind: bool = False
    ) -> list[str]:
        """The answer to each question about the picture of the same place; one question or one picture stands for
        all. blind: every picture is replaced by the zero picture, to see what the language alone would answer."""
        asked, shown = _paired(questions, "questions", pictures)
        return self._texts([READING.format(question=text) for text in asked], shown, max_new_tokens, blind)

    def detect(self, pictures: Pictures, phrases: str | Sequence[str]) -> list[list[Box]]:
        """The boxes of what each phrase ("the red car") means in its picture, in px; none where what the model says is
        no box. `draw_boxes` shows them."""
        asked, shown = _paired(phrases, "phrases", pictures)
        return [in_pixels(*one) for one in zip(self.boxes(shown, asked), shown, strict=True)]

    def boxes(self, pictures: Pictures, phrases: str | Sequence[str]) -> list[tuple[Box, ...] | None]:
        """As `detect`, but as fractions of width and height, and None where what the model says is no box."""
        asked, shown = _paired(phrases, "phrases", pictures)
        answers = self._texts([DETECTION_PROMPT.format(caption=phrase) for phrase in asked], shown, 12)
        return [boxes_of(BOX_START + answer) for answer in answers]

    def draw(self, texts: str | Sequence[str], seed: int = 0, **settings) -> list[Image.Image]:
        """A picture of each text; `settings` are further arguments of the de-tokenizer pipeline."""
        return self.decode(self.imagine(texts, seed), seed, **settings)

    def decode(self, embeddings: Tensor, seed: int = 0, **settings) -> list[Image.Image]:
        """A picture of each row of visual embeddings [B, N, K]. The noise depends on its place and `seed` only."""
        sources = noise(seed, range(len(embeddings)))
        return self.detokenizer(embeddings.to(self.detokenizer.device), generator=sources, **settings).images

    def imagine(self, texts: str | Sequence[str], seed: int = 0) -> Tensor:
        """The visual embeddings that the language model predicts for each text: [B, N, K]. seed: of the noise that a
        connector with flow matching begins with; regression has none."""
        asked = _listed(texts, str, "texts to draw from; `ask` and `describe` take pictures")
        source = torch.Generator().manual_seed(seed)
        answers = self._generated(asked, None, len(self.model.config.chain) - 1, draw=True, generator=source)
        return torch.stack([answer.pictures[0] for answer in answers])

    def chat(
        self,
        history: Sequence[Message],
        image: Image.Image | None = None,
        seed: int = 0,
        force_image: bool = False,
        max_new_tokens: int = 160,
        stream: Callable[[str], None] | None = None,
        edits: bool = False,
        **settings: Any,
    ) -> Reply:
        """The reply to a history of messages, see `dialogue.py`, by a model that was tuned on instructions.

        image: one more picture, shown with the last question. force_image: a reply without a picture gets one. stream:
        called with the words so far whenever there are more. edits: what is drawn is an edit of the picture that was
        shown last, see `edit`. seed, settings: as in `draw`.
        """
        turns, shown = read_history(history, image)
        ids: list[int] = []

        def tell(_row: int, new: list[int]) -> None:
            ids.extend(new if len(new) == 1 else ())  # a picture comes as a whole
            stream(self._said(ids))

        options = {"force_image": force_image, "stream": tell if stream else None}
        return self._replies([turns], [shown], max_new_tokens, seed, settings, edits, **options)[0]

    def replies(
        self, histories: Sequence[Sequence[Message]], seed: int = 0, max_new_tokens: int = 160, **settings: Any
    ) -> list[Reply]:
        """As `chat`, to many histories at once; the noise of what is drawn depends on the place in the list."""
        if not histories:
            return []
        turns, shown = zip(*map(read_history, histories), strict=True)
        return self._replies(turns, shown, max_new_tokens, seed, settings)

    def edit(
        self, pictures: Pictures, instructions: str | Sequence[str], seed: int = 0, **settings: Any
    ) -> list[Reply]:
        """Each picture as its instruction says, in its own size, and the rest as it was: the picture itself is the
        condition image. A reply without a picture says why. seed, settings: as in `draw`; the noise depends on the
        place in the list.

        Raises ValueError for an empty instruction, and for a de-tokenizer that takes no condition image.
        """
        asked, shown = _paired(instructions, "instructions", pictures)
        turns = [read_history([{"role": "user", "content": [*pair]}])[0] for pair in zip(shown, asked, strict=True)]
        return self._replies(turns, [[picture] for picture in shown], 160, seed, settings, edits=True)

    # Parts

    def _replies(
        self,
        turns: Sequence[Sequence[Turn]],
        shown: Sequence[Sequence[Image.Image]],
        most: int,
        seed: int,
        settings: dict[str, Any],
        edits: bool = False,
        **options: Any,
    ) -> list[Reply]:
        """Replies to open dialogues, with the pictures that each has shown; edits: what is drawn is made of the last of
        them."""
        if edits and not self.detokenizer.takes_condition:
            raise ValueError("this de-tokenizer takes no condition image; give one of the second stage")
        options["generator"] = torch.Generator().manual_seed(seed)
        told = self._answers(
            lambda part: self.processor.dialogues(turns[part], shown[part]), len(turns), most, **options
        )
        places = [place for place, answer in enumerate(told) for _ in answer.pictures]
        drawn: list[list[Image.Image]] = [[] for _ in told]
        if places:
            if edits:
                sources = [shown[place][-1] if shown[place] else None for place in places]
                size = (self.detokenizer.image_size,) * 2
                conditions = [source and source.resize(size, Image.Resampling.BICUBIC) for source in sources]
                settings = {"condition_images": conditions} | settings
            embeds = torch.stack([picture for answer in told for picture in answer.pictures])
            embeds = embeds.to(self.detokenizer.device)
            made = self.detokenizer(embeds, generator=noise(seed, places), **settings).images
            for place, picture in zip(places, made, strict=True):
                size = shown[place][-1].size if edits and shown[place] else picture.size
                drawn[place].append(picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC))
        last = [some[-1] if some else None for some in shown]
        said = [self._said(answer.text_ids) for answer in told]
        return [reply(*one) for one in zip(said, drawn, last, strict=True)]

    def _texts(
        self, texts: Sequence[str], pictures: Sequence[Image.Image], most: int, blind: bool = False
    ) -> list[str]:
        return [self._said(answer.text_ids) for answer in self._generated(texts, pictures, most, blind=blind)]

    def _said(self, ids: Sequence[int]) -> str:
        tokenizer = self.processor.layout.tokenizer
        return tokenizer.decode([token for token in ids if token != tokenizer.eos_token_id]).strip()

    def _generated(
        self,
        texts: Sequence[str],
        pictures: Sequence[Image.Image] | None,
        most: int,
        draw: bool = False,
        **options: Any,
    ) -> list[Generated]:
        shown = [[]] * len(texts) if pictures is None else [[picture] for picture in pictures]
        return self._answers(lambda part: self.processor(texts[part], shown[part], draw), len(texts), most, **options)

    @torch.no_grad()
    def _answers(
        self, prompts: Callable[[slice], dict[str, Any]], count: int, most: int, blind: bool = False, **options: Any
    ) -> list[Generated]:
        """The answers to `count` prompts, of which `prompts` makes batches; options go to `ContinuousLVLM.generate`."""
        answers, vit = list[Generated](), self.detokenizer.vit
        for start in range(0, count, BATCH):
            batch = prompts(slice(start, start + BATCH))
            pixels = batch.pop("pixel_values")
            batch = {name: None if value is None else value.to(self.model.device) for name, value in batch.items()}
            if pixels is not None:
                embeds = vit.zero_embeddings().expand(len(pixels), -1, -1) if blind else vit(pixels.to(vit.proj))
                batch["image_embeds"] = embeds.to(self.model.device)
            answers += self.model.generate(**batch, max_new_tokens=most, **options)
        return answers


def draw_boxes(picture: Image.Image, boxes: Sequence[Box], colour: str = "red") -> Image.Image:
    """A copy of the picture with the outlines of boxes in px, thick enough to be seen in large pictures, too."""
    shown = picture.convert("RGB").copy()
    pen, width = ImageDraw.Draw(shown), max(1, min(shown.size) // 96)
    for box in boxes:
        pen.rectangle([round(side) for side in box], outline=colour, width=width)
    return shown


def _listed(given: T | Sequence[T], kind: type[T], what: str) -> list[T]:
    items = [given] if isinstance(given, kind) else list(given) if isinstance(given, Sequence) else [given]
    if wrong := sorted({type(item).__name__ for item in items if not isinstance(item, kind)}):
        raise TypeError(f"got {', '.join(wrong)}, expected {what}")
    if not items:
        raise ValueError(f"an empty list; give one or more {what}")
    return items


def _shown(pictures: Pictures, what: str) -> list[Image.Image]:
    """Pictures as they are meant to be seen, each made so once, however many texts it stands beside."""
    return list(map(upright_rgb, _listed(pictures, Image.Image, what)))


def _paired(texts: str | Sequence[str], what: str, pictures: Pictures) -> tuple[list[str], list[Image.Image]]:
    """As many pictures as texts; one of either stands for all."""
    asked, shown = _listed(texts, str, what), _shown(pictures, "pictures; `draw` takes text alone")
    shown, asked = (some * max(len(asked), len(shown)) if len(some) == 1 else some for some in (shown, asked))
    if len(shown) != len(asked):
        raise ValueError(f"{len(asked)} {what} and {len(shown)} pictures; give as many, or one of either for all")
    return asked, shown
