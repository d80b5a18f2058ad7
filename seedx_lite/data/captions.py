"""Pictures with captions in a webdataset tar (official reader: `src/data/image_text_pairs_clm.py`).

    KEY.jpg + KEY.txt     the caption is the text
    KEY.jpg + KEY.json    the caption is under the first of `CAPTION_KEYS` that the object has

A key is a member's path up to the first dot of its name; its members stand together, so that a tar can be streamed.
Members with other endings are ignored beside these; a key that has no others is reported. Tars are not compressed.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath

from .formats import Problem, parse_object, plain, replacing, report, text
from .pictures import MAX_BYTES

CAPTION_KEYS = ("caption", "top_caption", "text")
ENDINGS = ("jpg", "txt", "json")


@dataclass(frozen=True)
class CaptionPair:
    """A picture, as the bytes of its file, and its caption."""

    key: str
    image: bytes = field(repr=False)
    caption: str
    place: str = field(default="", compare=False)


def parse(key: str, members: dict[str, bytes], place: str = "") -> CaptionPair:
    """The pair in the members {ending: content} of a key. Raises ValueError, naming the member."""
    found = ", ".join(f"{key}.{ending}" for ending in members)
    if "jpg" not in members:
        raise ValueError(f"no image: {key}.jpg expected, found {found}")
    if "txt" in members:
        try:
            caption = plain(members["txt"].decode(), f"{key}.txt")
        except UnicodeDecodeError as error:
            raise ValueError(f"{key}.txt is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    elif "json" in members:
        record = parse_object(members["json"])
        caption = text(record, next((name for name in CAPTION_KEYS if name in record), CAPTION_KEYS[0]))
    else:
        raise ValueError(f"an image without caption: {key}.txt or .json expected, found {found}")
    return CaptionPair(key, members["jpg"], caption.strip(), place)


def read(path: str | Path, problems: list[Problem] | None = None) -> Iterator[CaptionPair]:
    """The pairs of a tar, one after the other. Bad keys are appended to `problems` and skipped; without such a list the
    first one raises ValueError."""
    seen, damage = set(), ""
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in groupby((member for member in tar if not member.isdir()), lambda m: _split(m)[0]):
                place = f"{path}!{key}"
                try:
                    if key in seen:
                        raise ValueError("the key is there twice; its members must stand together, and once")
                    seen.add(key)
                    yield parse(key, _contents(tar, members), place)
                except ValueError as reason:
                    report(problems, place, reason)
            tar.fileobj.seek(tar.offset)
            tail = tar.fileobj.read(tarfile.BLOCKSIZE)
            if len(tail) < tarfile.BLOCKSIZE or any(tail):  # tarfile takes an odd header for the end
                damage = f"no end mark at byte {tar.offset}"
    except tarfile.TarError as error:
        damage = str(error)
    if not Path(path).stat().st_size or not (seen or damage):
        report(problems, path, "an empty tar; expected KEY.jpg with KEY.txt or KEY.json")
    elif damage:
        report(problems, path, f"no tar, compressed, or cut off ({damage}); expected a plain, whole tar")


def _split(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and ending: `a/b`, `c.d` of `a/b.c.d`."""
    name = PurePosixPath(member.name)
    stem, _, ending = name.name.partition(".")
    return str(name.parent / stem), ending


def _is_inside(name: PurePosixPath) -> bool:
    return not name.is_absolute() and ".." not in name.parts


def _contents(tar: tarfile.TarFile, members: Iterable[tarfile.TarInfo]) -> dict[str, bytes]:
    """{ending: content} of one key, empty for endings that are ignored. Raises ValueError, naming the member."""
    contents = {}
    for member in members:
        name, ending = PurePosixPath(member.name), _split(member)[1]
        if ending in contents:
            raise ValueError(f"{name} is there twice; keep one")
        if not _is_inside(name):
            raise ValueError(f"{name} leaves its folder; name members relative to the tar")
        if not member.isfile():
            raise ValueError(f"{name} is a link or a device, where a file is expected")
        if member.size > MAX_BYTES:
            raise ValueError(f"{name} is huge ({member.size:,} bytes), {MAX_BYTES >> 20} MB at most; scale it down")
        contents[ending] = tar.extractfile(member).read() if ending in ENDINGS else b""
    return contents


def write(path: str | Path, pairs: Iterable[CaptionPair], as_json: bool = False) -> None:
    """Write a tar, atomically, and the same for the same pairs: sorted by key, without times and owners; captions in
    KEY.txt, or KEY.json. Raises ValueError for what could not be read back."""
    last = None
    with replacing(path) as draft, tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
        for pair in sorted(pairs, key=lambda pair: pair.key):
            name = PurePosixPath(pair.key)
            if str(name) != pair.key or pair.key == last or "." in name.name or not _is_inside(name):
                raise ValueError(f"{path}!{pair.key}: expected each key once, relative, without dots in its name")
            about = json.dumps({CAPTION_KEYS[0]: pair.caption}, ensure_ascii=False) if as_json else pair.caption
            members = {"jpg": pair.image, "json" if as_json else "txt": about.encode()}
            parse(pair.key, members)
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{pair.key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            last = pair.key
