"""Conversations about an image, one per line of a jsonl file (official reader: `src/data/sft_clm.py`).

    {"image": "coco/train2017/000000033471.jpg", "data": ["question", "answer", "question", "answer", ...]}

`image` is relative to a folder of images; without it, or with "", "none" or "null.png", it is only text. Other keys are
ignored. For `read(path, images, problems)` and `write(path, samples, images)` see `formats.py`.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .formats import plain, read_lines, write_lines
from .pictures import picture_path, relative


@dataclass(frozen=True)
class Conversation:
    """`image`: the file, or None for text only. `data`: question, answer, question, answer, ..."""

    image: Path | None
    data: tuple[str, ...]
    place: str = field(default="", compare=False)

    def record(self, images: Path) -> dict:
        """The JSON object, with the image relative to the folder `images`."""
        image = {"image": relative(self.image, images)} if self.image else {}
        return {**image, "data": list(self.data)}


def parse(record: dict, images: Path, place: str = "") -> Conversation:
    """The inverse of `Conversation.record`. Raises ValueError or FileNotFoundError, naming the key."""
    turns = record.get("data")
    if not isinstance(turns, list):
        raise ValueError(f"key 'data' is missing or no list: a list of turns is expected, got {turns!r:.60}")
    if not turns or len(turns) % 2:
        raise ValueError(f"key 'data' has {len(turns)} turns; expected pairs of question and answer")
    data = tuple(plain(turn, f"turn {number} of 'data'") for number, turn in enumerate(turns, 1))
    name = record.get("image")
    if name in (None, "", "none") or (isinstance(name, str) and Path(name).stem == "null"):
        return Conversation(None, data, place)
    return Conversation(picture_path(plain(name, "key 'image'"), images), data, place)


read = partial(read_lines, parse)
write = partial(write_lines, parse)
