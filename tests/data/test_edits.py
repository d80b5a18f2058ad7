import json

import pytest

from seedx_lite.data.edits import EditPair, read, write

GOOD = {"source_image": "a.jpg", "target_image": "b.jpg", "instruction": "make it night"}


def put(folder, *records):
    path = folder / "edits.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_round_trip(images):
    """The official keys, and back; a response of its own needs `instruction_new` beside it."""
    samples = [
        EditPair(images / "a.jpg", images / "b.jpg", "make it night"),
        EditPair(images / "b.jpg", images / "a.jpg", "make it day", "here it is."),
    ]
    write(images / "edits.jsonl", samples)
    lines = [json.loads(line) for line in (images / "edits.jsonl").read_text().splitlines()]
    assert lines[0] == GOOD
    assert list(read(images / "edits.jsonl")) == samples


def test_own_response_needs_both_keys(images):
    """The official reader ignores `response` without `instruction_new`, and the other way round."""
    alone, both = {**GOOD, "response": "yes"}, {**GOOD, "response": "yes", "instruction_new": "do"}
    samples = list(read(put(images, alone, both)))
    assert [(s.instruction, s.response) for s in samples] == [("make it night", None), ("do", "yes")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *(({key: None}, f"key '{key}' is None") for key in GOOD),
        ({"instruction": "  "}, "key 'instruction' is '  '"),
        ({"source_image": "/etc/passwd"}, "no picture '/etc/passwd'"),
        ({"target_image": "../../b.jpg"}, "leaves its folder"),
        ({"target_image": "none.jpg"}, "no picture"),
        ({"instruction_new": 3, "response": "yes"}, "key 'instruction_new' is 3"),
    ],
)
def test_bad_values(images, change, reason):
    path = put(images, GOOD, {**GOOD, **change})
    with pytest.raises(ValueError, match=rf"edits\.jsonl:2: .*{reason}"):
        list(read(path))


@pytest.mark.parametrize("key", GOOD)
def test_missing_keys(images, key):
    path = put(images, {name: value for name, value in GOOD.items() if name != key}, GOOD)
    problems = []
    assert len(list(read(path, problems=problems))) == 1
    assert str(problems[0]).startswith(f"{path}:1: key '{key}' is missing; expected a text under it, found")
