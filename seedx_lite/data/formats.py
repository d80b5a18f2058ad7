"""What the official formats share: problems and their places, JSON lines, files that appear whole.

Each format is one module whose `parse` is the only place that knows its schema; reading and writing go through it.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock


@dataclass(frozen=True)
class Problem:
    """One bad line or file: `place` is `file`, `file:line` or `tar!KEY`; `reason` says what was expected."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def report(problems: list[Problem] | None, place: object, reason: object) -> None:
    """Append a problem to `problems`, or raise it as a ValueError where there is no list."""
    if problems is None:
        raise ValueError(f"{place}: {reason}")
    problems.append(Problem(str(place), str(reason)))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` when the block ends well and removed when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def alone(path: str | Path) -> Iterator[None]:
    """The block for one process at a time, while others that want to make the same `path` wait; so that they find it
    made, not make it, too. The lock, beside it, stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def parse_object(line: bytes) -> dict:
    """One JSON object in UTF-8. Raises ValueError for anything else, and for a key given twice."""

    def once(pairs: list[tuple[str, object]]) -> dict:
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"a key is there twice among {[key for key, _ in pairs]}")
        return dict(pairs)

    try:
        record = json.loads(line.decode().strip(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON object in UTF-8 ({error}); write one {{...}}") from error
    if not isinstance(record, dict):
        raise ValueError(f"no JSON object but a {type(record).__name__}; write one {{...}}")
    return record


def text(record: dict, key: str) -> str:
    """The text under a key. Raises ValueError where it is missing or not a usable text."""
    if key in record:
        return plain(record[key], f"key {key!r}")
    raise ValueError(f"key {key!r} is missing; expected a text under it, found the keys {list(record)}")


def plain(value: object, what: str) -> str:
    """`value` if it is a text, not empty, of whole characters; else a ValueError that calls it `what`."""
    if not isinstance(value, str) or not value.strip() or value.encode(errors="ignore").decode() != value:
        raise ValueError(f"{what} is {value!r:.60}, where a text that is not empty is expected")
    return value


def read_lines(parse: Callable, path: str | Path, images: str | Path | None = None, problems=None) -> Iterator:
    """`parse(object, images, "file:line")` of each line of a jsonl file; pictures are relative to `images`, by default
    the file's folder. Bad lines, and an empty file, are appended to the list `problems` and skipped; without one the
    first raises ValueError."""
    number, images = 0, Path(images or Path(path).parent)
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            try:
                yield parse(parse_object(line), images, place)
            except (ValueError, OSError) as error:
                report(problems, place, error)
    if not number:
        report(problems, path, "an empty file; expected one JSON object per line")


def write_lines(parse: Callable, path: str | Path, samples: Iterable, images: str | Path | None = None) -> None:
    """Write a jsonl file, atomically; its pictures must lie in `images`, by default the file's folder. Raises
    ValueError at the first sample that could not be read back."""
    images = Path(images or Path(path).parent)
    with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        for number, sample in enumerate(samples, 1):
            try:
                record = sample.record(images)
                parse(record, images)
            except (ValueError, OSError) as error:
                raise ValueError(f"{path}:{number} would be bad, so nothing is written: {error}") from error
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
