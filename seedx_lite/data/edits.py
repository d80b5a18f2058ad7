"""Edits, one per line of a jsonl file (official reader: `src/data/sft_clm.py`).

    {"source_image": "...jpg", "target_image": "...jpg", "instruction": "Erase the car ..."}

`instruction_new` and `response`, where both are there, replace the instruction and give the words before the drawn
image. Images, other keys, `read` and `write` are as in `conversations.py`.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .anyres import Size
from .formats import read_lines, text, write_lines
from .pictures import picture_path, relative


@dataclass(frozen=True)
class EditPair:
    """The files before and after, what was asked, and the answer in words, if one is given."""

    source_image: Path
    target_image: Path
    instruction: str
    response: str | None = None
    place: str = field(default="", compare=False)

    def record(self, images: Path) -> dict:
        """The JSON object, with the images relative to the folder `images`."""
        own = {"instruction_new": self.instruction, "response": self.response} if self.response else {}
        files = {key: relative(getattr(self, key), images) for key in ("source_image", "target_image")}
        return {**files, "instruction": self.instruction, **own}


def parse(record: dict, images: Path, place: str = "") -> EditPair:
    """The inverse of `EditPair.record`. Raises ValueError or FileNotFoundError, naming the key."""
    instruction, response = text(record, "instruction"), None
    if {"instruction_new", "response"} <= record.keys():
        instruction, response = text(record, "instruction_new"), text(record, "response")
    files = [picture_path(text(record, key), images) for key in ("source_image", "target_image")]
    return EditPair(*files, instruction, response, place)


def check_sizes(source: Size, target: Size) -> None:
    """Raises ValueError for pictures of different size, (width, height) in px."""
    if source != target:
        told = (f"{width}x{height} px" for width, height in (source, target))
        raise ValueError("a source of {} and a target of {}; crop or resize one, so that places agree".format(*told))


read = partial(read_lines, parse)
write = partial(write_lines, parse)
