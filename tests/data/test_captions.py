import io
import json
import tarfile

import pytest

from seedx_lite.data import captions
from seedx_lite.data.captions import CaptionPair, read, write


def put(folder, *members, name="x.tar", **options):
    """A tar of (name, content) or `TarInfo`."""
    with tarfile.open(folder / name, options.get("mode", "w")) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return folder / name


@pytest.mark.parametrize("as_json", [False, True])
def test_round_trip_and_determinism(tmp_path, jpeg, as_json):
    """The same pairs in any order give the same bytes: a manifest of hashes depends on it."""
    pairs = [CaptionPair(f"{i:03d}", jpeg, f"caption {i} – 左") for i in range(3)]
    write(tmp_path / "a.tar", pairs, as_json)
    write(tmp_path / "b.tar", reversed(pairs), as_json)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    back = list(read(tmp_path / "a.tar"))
    assert back == pairs and back[2].place == f"{tmp_path / 'a.tar'}!002"
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames()[:2] == ["000.jpg", "000.json" if as_json else "000.txt"]
        assert {(m.mtime, m.uid, m.uname) for m in tar} == {(0, 0, "")}


def test_members_as_others_write_them(tmp_path, jpeg):
    """Folders, `./`, other endings, either order, JSON beside text: all are in tars of the wild."""
    folder = tarfile.TarInfo("./sub")
    folder.type = tarfile.DIRTYPE
    about = json.dumps({"top_caption": "from json", "similarity": 0.3}).encode()
    path = put(
        tmp_path,
        folder,
        ("./sub/0.txt", b" from text\n"),
        ("./sub/0.jpg", jpeg),
        ("./sub/0.cls", b"7"),
        ("./sub/0.json", about),
        ("1.json", about),
        ("1.jpg", jpeg),
    )
    assert [(p.key, p.caption) for p in read(path)] == [("sub/0", "from text"), ("1", "from json")]


def link(name):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "key", "reason"),
    [
        (lambda jpeg: [("1.jpg", jpeg)], "1", r"an image without caption: 1\.txt or \.json expected, found 1\.jpg"),
        (lambda jpeg: [("1.txt", b"x")], "1", r"no image: 1\.jpg expected, found 1\.txt"),
        (lambda jpeg: [("1.png", jpeg), ("1.txt", b"x")], "1", r"1\.jpg expected, found 1\.png, 1\.txt"),
        (lambda jpeg: [("README", b"x")], "README", r"no image"),
        (lambda jpeg: [("1.jpg", jpeg), ("1.txt", b" ")], "1", r"1\.txt is ' '"),
        (lambda jpeg: [("1.jpg", jpeg), ("1.txt", b"\xff")], "1", r"1\.txt is not UTF-8"),
        (lambda jpeg: [("1.jpg", jpeg), ("1.json", b"{")], "1", "no JSON object"),
        (lambda jpeg: [("1.jpg", jpeg), ("1.json", b'{"caption": 3}')], "1", "key 'caption' is 3"),
        (lambda jpeg: [("1.jpg", jpeg), ("1.json", b'{"url": ""}')], "1", r"key 'caption' is missing.*'url'"),
        (lambda jpeg: [("1.jpg", jpeg), ("1.jpg", jpeg), ("1.txt", b"x")], "1", r"1\.jpg is there twice"),
        (lambda jpeg: [("0.jpg", jpeg), ("0.txt", b"x")], "0", "the key is there twice"),
        (lambda jpeg: [("../1.jpg", jpeg), ("../1.txt", b"x")], "../1", r"\.\./1\.jpg leaves its folder"),
        (lambda jpeg: [("/1.jpg", jpeg), ("/1.txt", b"x")], "/1", r"/1\.jpg leaves its folder"),
        (lambda jpeg: [link("1.jpg"), ("1.txt", b"x")], "1", "a link or a device"),
    ],
)
def test_bad_keys(tmp_path, jpeg, members, key, reason):
    """Each bad key is named, alone; the good ones around it are still read."""
    around = [[(f"{name}.jpg", jpeg), (f"{name}.txt", b"x")] for name in "02"]
    path = put(tmp_path, *around[0], ("between.jpg", jpeg), ("between.txt", b"x"), *members(jpeg), *around[1])
    problems = []
    assert [pair.key for pair in read(path, problems=problems)] == ["0", "between", "2"]
    assert [problem.place for problem in problems] == [f"{path}!{key}"]
    with pytest.raises(ValueError, match=reason):
        list(read(path))


def test_huge_member(tmp_path, jpeg, monkeypatch):
    monkeypatch.setattr(captions, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"!1: 1\.jpg is huge"):
        list(read(put(tmp_path, ("1.jpg", jpeg), ("1.txt", b"x"))))


def test_empty_tars(tmp_path):
    (tmp_path / "zero.tar").touch()
    for path in (put(tmp_path), tmp_path / "zero.tar"):
        problems = []
        assert list(read(path, problems=problems)) == []
        (problem,) = problems
        assert problem.place == str(path) and problem.reason.startswith("an empty tar; expected KEY.jpg with")


def test_no_tar_and_compressed(tmp_path, jpeg):
    (tmp_path / "text.tar").write_text("no tar " * 500)
    zipped = put(tmp_path, ("1.jpg", jpeg), ("1.txt", b"x"), name="z.tar", mode="w:gz")
    for path in (tmp_path / "text.tar", zipped):
        with pytest.raises(ValueError, match=r"\.tar: no tar, compressed, or cut off .*expected a plain, whole tar"):
            list(read(path))
    with pytest.raises(FileNotFoundError):
        list(read(tmp_path / "missing.tar"))


def test_a_tar_cut_anywhere_is_noticed(tmp_path, jpeg):
    """`tarfile` takes an odd or missing header for the end, and a cut download for a smaller data set."""
    write(tmp_path / "whole.tar", [CaptionPair(str(i), jpeg, "x") for i in range(3)])
    data = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        end = tar.getmembers()[-1].offset_data + 512
    for length in [*range(100, end, 512), *range(512, end + 1, 512)]:
        (tmp_path / "cut.tar").write_bytes(data[:length])
        problems = []
        pairs = list(read(tmp_path / "cut.tar", problems=problems))
        assert problems, length
        assert all(pair.image == jpeg for pair in pairs)
    damaged = bytearray(data)
    damaged[end // 2 // 512 * 512 : end // 2 // 512 * 512 + 2048] = b"\xaa" * 2048
    (tmp_path / "damaged.tar").write_bytes(damaged)
    problems = []
    list(read(tmp_path / "damaged.tar", problems=problems))
    assert problems


@pytest.mark.parametrize("key", ["a.b", "../a", "/a", "", "twice", "./a"])
def test_write_refuses_keys_that_read_otherwise(tmp_path, jpeg, key):
    pairs = [CaptionPair(key, jpeg, "x"), CaptionPair("twice", jpeg, "x")]
    with pytest.raises(ValueError, match=r"y\.tar!.*expected each key once"):
        write(tmp_path / "y.tar", pairs)
    with pytest.raises(ValueError, match=r"1\.txt is ''"):
        write(tmp_path / "y.tar", [CaptionPair("1", jpeg, "")])
    assert list(tmp_path.iterdir()) == []
