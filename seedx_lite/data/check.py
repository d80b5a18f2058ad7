"""`check`: is this folder or file what the official readers expect? Everything bad in one report."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from . import captions, conversations, edits
from .formats import Problem, read_lines, report
from .pictures import open_picture
from .tokenizer import check_words

FORMATS = {"conversations": conversations, "captions": captions, "edits": edits}
TEXTS = {  # of a sample: what a language model is to read or say
    "conversations": lambda talk: talk.data,
    "captions": lambda pair: (pair.caption,),
    "edits": lambda edit: (edit.instruction, edit.response or ""),
}
KEYS = {"conversations": {"image", "data"}, "edits": {"source_image", "target_image", "instruction"}}


@dataclass
class Report:
    """`counts`: {format: {"files", "good", "bad"}}; a file that is bad as a whole counts as one more bad."""

    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [*map(str, self.problems)]
        lines += [f"{name}: {c['files']} files, {c['good']} good, {c['bad']} bad" for name, c in self.counts.items()]
        return "\n".join([*lines, "no problems" if self.ok else f"{len(self.problems)} problem(s)"])


def detect(path: str | Path) -> str | None:
    """`conversations`, `captions` or `edits`, by the content of a file; None if it is none of them."""
    with Path(path).open("rb") as file:
        if file.read(512)[257:262] == b"ustar" or Path(path).suffix == ".tar":
            return "captions"
    for record in _objects(path, []):
        shared = {name: len(keys & record.keys()) for name, keys in KEYS.items()}
        if any(shared.values()):
            return max(shared, key=shared.get)
    return None


def data_files(path: str | Path) -> list[Path]:
    """Every `*.jsonl` and `*.tar` below a folder, but no hidden ones; a file is itself."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    below = {file.relative_to(path) for ending in ("jsonl", "tar") for file in path.rglob(f"*.{ending}")}
    return [path / name for name in sorted(below) if not any(part.startswith(".") for part in name.parts)]


def check(path: str | Path, images: str | Path | None = None, tokenizer=None) -> Report:
    """Check a jsonl file, a tar, or every `*.jsonl` and `*.tar` below a folder (not hidden ones), in any of the three
    formats: every line is parsed and every picture decoded. Bad data raises nothing: it is all in the report. Pictures
    are named relative to the folder `images`, by default that of each jsonl file. tokenizer: of the language model that
    is to be trained; words that it does not know are reported, too."""
    result, files = Report(), data_files(path)
    if not files:
        report(result.problems, path, "nothing to check; expected *.jsonl or *.tar in this folder or below")
    for file in files:
        try:
            _check_file(file, result, images, tokenizer)
        except OSError as error:
            report(result.problems, file, f"{error.strerror or error}; check the name and the rights")
    return result


def _objects(path: str | Path, problems: list[Problem]) -> Iterator[dict]:
    return read_lines(lambda record, *_: record, path, problems=problems)


def _check_file(path: Path, result: Report, images: str | Path | None, tokenizer) -> None:
    name = detect(path)
    if name is None:
        list(_objects(path, result.problems))  # for the lines that are no JSON
        report(result.problems, path, f"none of the three formats; expected a tar, or lines with the keys of {KEYS}")
        return
    count = result.counts.setdefault(name, {"files": 0, "good": 0, "bad": 0})
    count["files"] += 1
    unread: list[Problem] = []
    where = {} if name == "captions" else {"images": images}
    samples = FORMATS[name].read(path, problems=unread, **where)
    for sample in tqdm(samples, desc=path.name, unit=" samples", delay=2, leave=False):
        before, sizes = len(result.problems), []
        for picture in vars(sample).values():
            if isinstance(picture, Path | bytes):
                try:
                    sizes.append(open_picture(picture, name="its picture").size)
                except (ValueError, OSError) as error:
                    report(result.problems, sample.place, error)
        try:
            if len(sizes) == 2:
                edits.check_sizes(*sizes)
            if tokenizer is not None:
                check_words(tokenizer, TEXTS[name](sample))
        except ValueError as error:
            report(result.problems, sample.place, error)
        count["good" if len(result.problems) == before else "bad"] += 1
    result.problems += unread
    count["bad"] += len(unread)
