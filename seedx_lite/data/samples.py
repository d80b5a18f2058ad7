"""`build`: the samples that ship, in the three official formats, drawn from training scenes of the world."""

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
from tqdm import tqdm

from seedx_lite import __version__
from seedx_lite.world.draw import render
from seedx_lite.world.edits import sample_edit
from seedx_lite.world.language import DETAILS, caption, grounded_description
from seedx_lite.world.questions import questions
from seedx_lite.world.scene import SEED_RANGES, Scene, sample_scene
from . import captions, conversations, edits
from .prompts import DESCRIBE, LOCATE

README = Path(__file__).with_name("samples.md")  # a template; its licence is beside it
MANIFEST = "manifest.json"
ENTRIES = (MANIFEST, "conversations", "captions", "edits", "README.md", "LICENSE")
OTHER_SIZES = {1: (96, 64), 4: (64, 96), 7: (128, 64)}  # by the last digit of a sample's number; 64x64 else


def build(folder: str | Path = "data_samples", seed: int = 0, count: int = 200) -> Path:
    """Write `count` samples in each format, with README, licence, manifest and their scenes, to `folder`; returns it.

    All or nothing: `ENTRIES` are made apart and then put in place; whatever else is in the folder stays. Raises
    ValueError for `count` < 2 and FileExistsError if an entry holds a file that `build` did not write.
    """
    folder = Path(folder)
    if count < 2:
        raise ValueError(f"build: count of at least 2 expected, got {count}")
    ours = set()
    with suppress(OSError, ValueError, KeyError, TypeError):  # no manifest, or another's
        ours = {MANIFEST, *json.loads((folder / MANIFEST).read_bytes())["sha256"]}
    there = [file for entry in ENTRIES for file in (folder / entry, *(folder / entry).rglob("*")) if file.is_file()]
    if strangers := [str(file) for file in there if file.relative_to(folder).as_posix() not in ours]:
        raise FileExistsError(f"{strangers[0]} ({len(strangers)} in all) is not of this command; move it away first")
    folder.mkdir(parents=True, exist_ok=True)
    for killed in folder.glob(".building-*"):
        shutil.rmtree(killed, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as name:
            draft = Path(name)
            _write_all(draft, seed, count)
            for entry in ENTRIES:
                with suppress(FileNotFoundError):
                    (folder / entry).rename(draft / f"old-{entry}")
                (draft / entry).rename(folder / entry)
    finally:
        with suppress(OSError):
            folder.rmdir()  # only if it is empty: nothing was written
    return folder


def _write_all(folder: Path, seed: int, count: int) -> None:
    for write in (_conversations, _captions, _edits):
        part = folder / write.__name__[1:]
        part.mkdir()
        scenes = write(part, seed, count).items()
        lines = [f'"{name}": {json.dumps(scene.to_dict(), separators=(",", ":"))}' for name, scene in scenes]
        # Not jsonl, which the official readers would take for samples.
        (part / "scenes.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    shutil.copyfile(README.with_suffix(".license"), folder / "LICENSE")
    text = README.read_text(encoding="utf-8").format(seed=seed, count=count, **_examples(folder))
    (folder / "README.md").write_text(text)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    facts = dict(seed=seed, count=count, seedx_lite=__version__, pillow=PIL.__version__, sha256=hashes)
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1) + "\n")


def _jpeg(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    render(scene).save(buffer, "JPEG", quality=92, subsampling=0, optimize=True)  # colour at full resolution
    return buffer.getvalue()


def _draws(name: str, seed: int, count: int) -> Iterator[tuple[int, np.random.Generator, dict]]:
    """(number, generator, arguments of `sample_scene` and `sample_edit`) for every sample of one format."""
    for number in tqdm(range(count), desc=f"drawing {name}", unit=" samples"):
        rng = np.random.default_rng([seed, *name.encode(), number])
        mix, size = ("narrow", "broad")[number % 4 == 3], OTHER_SIZES.get(number % 10, (64, 64))
        yield number, rng, {"index": int(rng.integers(SEED_RANGES["train"][1])), "mix": mix, "size": size}


def _conversations(folder: Path, seed: int, count: int) -> dict[str, Scene]:
    """In turn a description and two questions, description with boxes and a question, one question, four."""
    samples, scenes = [], {}
    (folder / "images").mkdir()
    for number, rng, arguments in _draws("conversations", seed, count):
        name = f"images/{number:06d}.jpg"
        scene = scenes[name] = sample_scene(**arguments)
        (folder / name).write_bytes(_jpeg(scene))
        asked = questions(scene)
        turns = [(asked[i].text, asked[i].answer) for i in rng.permutation(len(asked))[: (2, 1, 1, 4)[number % 4]]]
        if number % 4 == 0:
            turns.insert(0, (DESCRIBE, caption(scene, "full", rng)))
        elif number % 4 == 1:
            turns.insert(0, (LOCATE, grounded_description(scene, rng)))
        samples.append(conversations.Conversation(folder / name, sum(turns, ())))
    conversations.write(folder / "train.jsonl", samples)
    return scenes


def _captions(folder: Path, seed: int, count: int) -> dict[str, Scene]:
    pairs, scenes = [], {}
    for number, rng, arguments in _draws("captions", seed, count):
        scene = scenes[f"{number:06d}"] = sample_scene(**arguments)
        words = caption(scene, list(DETAILS)[number % len(DETAILS)], rng)
        pairs.append(captions.CaptionPair(f"{number:06d}", _jpeg(scene), words))
    captions.write(folder / "000000.tar", pairs[: count // 2])
    captions.write(folder / "000001.tar", pairs[count // 2 :], as_json=True)
    return scenes


def _edits(folder: Path, seed: int, count: int) -> dict[str, Scene]:
    samples, scenes = [], {}
    (folder / "images").mkdir()
    for number, _, arguments in _draws("edits", seed, count):
        edit = sample_edit(**arguments)
        pair = {f"images/{number:06d}_source.jpg": edit.source, f"images/{number:06d}_target.jpg": edit.target}
        for name, scene in pair.items():
            (folder / name).write_bytes(_jpeg(scene))
        samples.append(edits.EditPair(*(folder / name for name in pair), edit.instruction))
        scenes |= pair
    edits.write(folder / "edits.jsonl", samples)
    return scenes


def _examples(folder: Path) -> dict[str, str]:
    pair = next(captions.read(folder / "captions/000000.tar"))
    lines = {"conversation": "conversations/train.jsonl", "edit": "edits/edits.jsonl"}
    first = {name: (folder / path).read_text().splitlines()[0] for name, path in lines.items()}
    return {**first, "caption": f"{pair.key}.jpg with {pair.key}.txt: {pair.caption}"}
