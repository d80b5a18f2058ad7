import json
import os

import pytest
from PIL import Image

from seedx_lite.data import captions
from seedx_lite.data.check import check, detect
from seedx_lite.data.tokenizer import llm_tokenizer

TALK = {"image": "a.jpg", "data": ["q", "a"]}
EDIT = {"source_image": "a.jpg", "target_image": "b.jpg", "instruction": "make it night"}


def put(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_all_three_formats_in_one_folder(images, jpeg):
    """Formats are told by content, not by the names of files; hidden files are not data."""
    put(images / "one.jsonl", TALK, TALK)
    (images / "sub").mkdir()
    put(images / "sub" / "two.jsonl", {**EDIT, "source_image": "a.jpg", "target_image": "a.jpg"})
    (images / "sub" / "a.jpg").write_bytes(jpeg)
    captions.write(images / "three.tar", [captions.CaptionPair("0", jpeg, "x")])
    (images / "three.tar").rename(images / "three.bin")
    put(images / ".hidden.jsonl", "no JSON")
    captions.write(images / "four.tar", [captions.CaptionPair("0", jpeg, "x")], as_json=True)
    report = check(images)
    assert report.ok and report.problems == []
    assert report.counts == {
        "captions": {"files": 1, "good": 1, "bad": 0},
        "conversations": {"files": 1, "good": 2, "bad": 0},
        "edits": {"files": 1, "good": 1, "bad": 0},
    }
    assert str(report).endswith("edits: 1 files, 1 good, 0 bad\nno problems")
    assert detect(images / "three.bin") == "captions"
    assert check(images / "three.bin").counts == {"captions": {"files": 1, "good": 1, "bad": 0}}


def test_everything_bad_is_reported_in_one_go(images, jpeg):
    """Stopping at the first problem makes cleaning a data set a matter of days."""
    talks = put(
        images / "talk.jsonl",
        TALK,
        "{",
        {**TALK, "data": ["q"]},
        {**TALK, "image": "broken.jpg"},
        {**TALK, "image": "missing.jpg"},
        {**TALK, "image": "../../etc/hosts"},
        TALK,
        {"image": "a.jpg"},
    )
    Image.new("RGB", (64, 32)).save(images / "wide.png")
    broken, wide = {"source_image": "broken.jpg", "target_image": "broken.jpg"}, {"target_image": "wide.png"}
    edits = put(images / "edit.jsonl", EDIT | broken, EDIT, EDIT | wide)
    half = captions.CaptionPair("half", jpeg[:200], "x")
    captions.write(images / "caps.tar", [captions.CaptionPair("good", jpeg, "x"), half])
    (images / "empty.tar").touch()
    report = check(images)
    assert not report.ok
    places = [(problem.place.rpartition("/")[2], problem.reason) for problem in report.problems]
    expected = [
        ("caps.tar!half", "its picture: broken or cut off"),
        ("edit.jsonl:1", "broken.jpg: broken or cut off"),
        ("edit.jsonl:1", "broken.jpg: broken or cut off"),
        ("edit.jsonl:3", "px and a target of 64x32 px; crop or resize one"),
        ("empty.tar", "an empty tar"),
        ("talk.jsonl:4", "broken.jpg: broken or cut off"),
        ("talk.jsonl:2", "no JSON object"),
        ("talk.jsonl:3", "1 turns"),
        ("talk.jsonl:5", "no picture 'missing.jpg'"),
        ("talk.jsonl:6", "leaves its folder"),
        ("talk.jsonl:8", "key 'data' is missing"),
    ]
    assert [place for place, _ in places] == [place for place, _ in expected]
    assert all(part in reason for (_, reason), (_, part) in zip(places, expected, strict=True))
    assert report.counts == {
        "captions": {"files": 2, "good": 1, "bad": 2},
        "edits": {"files": 1, "good": 1, "bad": 2},
        "conversations": {"files": 1, "good": 2, "bad": 6},
    }
    assert str(report).endswith("11 problem(s)")
    assert check(talks).counts["conversations"]["bad"] == 6 and len(check(edits).problems) == 3


def test_the_first_lines_may_be_the_bad_ones(images):
    """A format that is told by the first line only would blame every other line."""
    report = check(put(images / "x.jsonl", "{", {"id": 3}, {"instruction": "x", "note": ""}, EDIT))
    assert [problem.place[-2:] for problem in report.problems] == [":1", ":2", ":3"]
    assert report.counts == {"edits": {"files": 1, "good": 1, "bad": 3}}


@pytest.mark.parametrize("lines", [(), ({"id": 1},), ("x", "y")])
def test_no_known_format(images, lines):
    report = check(put(images / "x.jsonl", *lines))
    assert not report.ok and "none of the three formats" in report.problems[-1].reason
    assert len(report.problems) == 1 + sum(isinstance(line, str) for line in lines) + (not lines)


def test_nothing_there(tmp_path):
    """An empty folder or a mistyped name is no clean data set."""
    assert "nothing to check; expected *.jsonl or *.tar" in str(check(tmp_path))
    assert "typo: No such file or directory; check the name" in str(check(tmp_path / "typo"))
    (tmp_path / "folder.jsonl").mkdir()
    assert "Is a directory" in str(check(tmp_path)) or os.name == "nt"


def test_words_that_the_language_model_does_not_know(images, jpeg):
    """Bug: "no problems" said of texts that stop the training."""
    put(
        images / "talk.jsonl",
        {**TALK, "data": ["what is there?", "a giraffe on grass"]},
        {**TALK, "data": ["is it night?", "no"]},
    )
    put(
        images / "edit.jsonl",
        {**EDIT, "target_image": "a.jpg"},
        {**EDIT, "target_image": "a.jpg", "instruction": "Add glitter"},
    )
    captions.write(
        images / "caps.tar", [captions.CaptionPair("0", jpeg, "a red cat"), captions.CaptionPair("1", jpeg, "a tiger")]
    )
    assert check(images).ok
    report = check(images, tokenizer=llm_tokenizer())
    told = [
        (problem.place.rpartition("/")[2], problem.reason.partition("unknown words ")[2]) for problem in report.problems
    ]
    ending = "; say it in the world's vocabulary"
    assert told == [
        ("caps.tar!1", "tiger" + ending),
        ("edit.jsonl:2", "glitter" + ending),
        ("talk.jsonl:1", "giraffe" + ending),
    ]
    assert [count["bad"] for count in report.counts.values()] == [1, 1, 1]


def test_images_elsewhere(images, tmp_path, jpeg):
    """Official data keeps lines and images apart; tars hold their own."""
    lines = tmp_path / "lines"
    lines.mkdir()
    put(lines / "x.jsonl", TALK)
    captions.write(lines / "x.tar", [captions.CaptionPair("0", jpeg, "x")])
    assert len(check(lines).problems) == 1
    assert check(lines, images=images).ok
