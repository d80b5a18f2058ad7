import json

import pytest

from seedx_lite.data.conversations import Conversation, read, write

GOOD = {"image": "a.jpg", "data": ["what is there?", "a cat"]}


def put(folder, *lines) -> str:
    path = folder / "train.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def test_round_trip(images):
    """What is written is what is read, in the official keys, whatever the script of the text."""
    samples = [Conversation(images / "a.jpg", ("où ?", "左边", "q", "a")), Conversation(None, ("hello", "hello world"))]
    write(images / "train.jsonl", samples)
    lines = [json.loads(line) for line in (images / "train.jsonl").read_text().splitlines()]
    assert lines[0] == {"image": "a.jpg", "data": ["où ?", "左边", "q", "a"]}
    back = list(read(images / "train.jsonl"))
    assert back == samples
    assert back[1].place == f"{images / 'train.jsonl'}:2"


def test_images_in_another_folder(images, tmp_path):
    """The official configuration names the folder of the lines and that of the images apart."""
    path = tmp_path / "lines" / "train.jsonl"
    write(path, [Conversation(images / "b.jpg", ("q", "a"))], images)
    assert next(read(path, images)).image == images / "b.jpg"
    with pytest.raises(ValueError, match=r"train\.jsonl:1: no picture 'b\.jpg'"):
        list(read(path))


@pytest.mark.parametrize("image", ["", "none", "null.png", None])
def test_text_only_as_in_the_official_reader(images, image):
    sample = next(read(put(images, {"image": image, "data": ["q", "a"], "id": 3})))
    assert sample.image is None and sample.data == ("q", "a")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"image": "a.jpg", "data": [', "no JSON object in UTF-8"),
        (b"", "no JSON object in UTF-8"),
        (b"\xff\xfe", "no JSON object in UTF-8"),
        (b"[" * 100_000, "no JSON object in UTF-8"),
        (b"[1]", "no JSON object but a list"),
        (b'{"data": ["q", "a"], "data": []}', "a key is there twice"),
        ({"image": "a.jpg"}, "key 'data' is missing"),
        ({"image": "a.jpg", "data": "q"}, "a list of turns is expected"),
        ({"image": "a.jpg", "data": []}, "0 turns"),
        ({"image": "a.jpg", "data": ["q", "a", "q"]}, "3 turns; expected pairs"),
        ({"image": "a.jpg", "data": ["q", 7]}, "turn 2 of 'data' is 7"),
        ({"image": "a.jpg", "data": ["q", " "]}, "turn 2 of 'data' is ' '"),
        (b'{"data": ["q", "\\ud800"]}', "turn 2 of 'data'"),
        ({"image": 7, "data": ["q", "a"]}, "key 'image' is 7"),
        ({"image": ["a.jpg"], "data": ["q", "a"]}, "key 'image' is"),
        ({"image": "missing.jpg", "data": ["q", "a"]}, r"no picture 'missing\.jpg'"),
        ({"image": "../data/../../x.jpg", "data": ["q", "a"]}, "leaves its folder"),
    ],
)
def test_bad_lines(images, line, reason):
    """Each bad line is named with its number, alone; the good ones around it are still read."""
    path = put(images, GOOD, line, GOOD)
    problems = []
    assert len(list(read(path, problems=problems))) == 2
    assert [problem.place for problem in problems] == [f"{path}:2"]
    with pytest.raises(ValueError, match=rf"train\.jsonl:2: .*{reason}"):
        list(read(path))


def test_empty_file(images):
    """An empty file would otherwise be an epoch without a step."""
    with pytest.raises(ValueError, match=r"train\.jsonl: an empty file"):
        list(read(put(images)))


def test_a_bad_sample_leaves_the_old_file(images):
    """Half a jsonl file looks like a whole one."""
    path = put(images, GOOD)
    before = path.read_bytes()
    names = sorted(images.iterdir())
    with pytest.raises(ValueError, match=r"train\.jsonl:2 would be bad, so nothing is written: .*1 turns"):
        write(path, [Conversation(None, ("q", "a")), Conversation(None, ("q",))])
    assert path.read_bytes() == before and sorted(images.iterdir()) == names
