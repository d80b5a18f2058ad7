"""What is said to an assistant, and what it says: messages in, replies with words, boxes and pictures out.

A message is {"role": "user" or "assistant", "content": a text, a picture, or a list of texts and pictures}. The user
begins, and roles take turns.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from seedx_lite.data.layout import Turn
from seedx_lite.data.pictures import upright_rgb
from seedx_lite.world.language import find_boxes

Box = tuple[float, float, float, float]  # left, top, right, bottom
Message = Mapping[str, Any]
ROLES, NOTHING = ("user", "assistant"), "nothing"
_BOXES = re.compile(r"\s*\[\[.*?(\]\]|$)")  # also one that is cut off


class Reply(NamedTuple):
    """An answer: its `text` without boxes; `boxes` in px of the picture that was shown last, none where what the model
    says is no box; the `pictures` that it drew; and the `message` that carries it on in the history, which takes one
    picture, the first, and no silence: `NOTHING` stands for it."""

    text: str
    boxes: list[Box]
    pictures: list[Image.Image]
    message: dict[str, Any]


def read_history(history: Sequence[Message], image: Image.Image | None = None) -> tuple[list[Turn], list[Image.Image]]:
    """The turns of a history, the last one open, and all pictures that the user has shown, in order. image: one more,
    shown with the last question.

    Raises ValueError or TypeError that names the message: roles out of order, an answer that is missing or is the last
    message, an empty question, two pictures in an answer, or something that is neither text nor picture.
    """
    if len(history) % 2 == 0:
        raise ValueError(f"{len(history)} messages; expected an odd number: a history ends with a question of the user")
    turns, shown = [], list[Image.Image]()
    for number, message in enumerate(history):
        role = ROLES[number % 2]
        if message.get("role") != role:
            raise ValueError(f"message {number} is of {message.get('role')!r}, expected {role!r}: roles take turns")
        text, pictures = _content(message, number, [image] if image is not None and number == len(history) - 1 else [])
        if role == "user":
            if not text:
                raise ValueError(f"message {number} asks nothing: give it a text")
            turns.append(Turn(text, shown=tuple(picture.size for picture in pictures)))
            shown += pictures
        else:
            if len(pictures) > 1 or not (text or pictures):
                raise ValueError(f"message {number} has {len(pictures)} pictures; expected words, one picture, or both")
            turns[-1] = turns[-1]._replace(answer=text, drawn=pictures[0].size if pictures else None)
    return turns, shown


def _content(message: Message, number: int, pictures: list[Image.Image]) -> tuple[str, list[Image.Image]]:
    content = message.get("content")
    texts = []
    for part in content if isinstance(content, list | tuple) else [content]:
        if isinstance(part, Image.Image):
            pictures = [*pictures, part]
        elif isinstance(part, str):
            texts.append(part.strip())
        else:
            raise TypeError(f"message {number} holds a {type(part).__name__}; expected texts and pictures")
    return " ".join(filter(None, texts)), list(map(upright_rgb, pictures))


def boxes_of(text: str) -> tuple[Box, ...] | None:
    """All boxes in what a model said, as fractions; None if one is malformed."""
    try:
        return find_boxes(text)
    except ValueError:
        return None


def in_pixels(boxes: Sequence[Box] | None, picture: Image.Image) -> list[Box]:
    """Boxes in fractions as boxes in px of a picture; none for None."""
    return [tuple(side * length for side, length in zip(box, 2 * picture.size, strict=True)) for box in boxes or ()]


def reply(said: str, pictures: list[Image.Image], shown: Image.Image | None) -> Reply:
    """What a model `said`, box tokens included, as a reply."""
    boxes = in_pixels(boxes_of(said), shown) if shown is not None else []
    content = [part for part in (said, *pictures[:1]) if part] or [NOTHING]
    return Reply(_BOXES.sub("", said).strip(), boxes, pictures, {"role": "assistant", "content": content})
