import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from seedx_lite.data import captions, conversations, edits, samples
from seedx_lite.data.check import check
from seedx_lite.data.pictures import open_picture
from seedx_lite.world.draw import render
from seedx_lite.world.language import BOX_END, BOX_START, LOCATION_TOKENS, vocabulary, words
from seedx_lite.world.scene import Scene, split_of

COMMITTED = Path(__file__).parents[2] / "data_samples"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return samples.build(tmp_path_factory.mktemp("samples") / "data_samples", seed=1, count=20)


def assert_matches_manifest(folder: Path):
    manifest = json.loads((folder / samples.MANIFEST).read_text())
    listed = {folder / name: digest for name, digest in manifest["sha256"].items()}
    there = [file for entry in samples.ENTRIES for file in (folder / entry, *(folder / entry).rglob("*"))]
    assert {file for file in there if file.is_file()} == {*listed, folder / samples.MANIFEST}
    changed = [file for file, digest in listed.items() if hashlib.sha256(file.read_bytes()).hexdigest() != digest]
    assert not changed, "differ from the manifest: run `python -m seedx_lite data build`"
    return manifest


def test_committed_samples():
    """What ships is what `build` wrote, complete, readable and small."""
    manifest = assert_matches_manifest(COMMITTED)
    report = check(COMMITTED)
    assert report.ok, str(report)
    counts = {name: count["good"] for name, count in report.counts.items()}
    assert counts == dict.fromkeys(("conversations", "captions", "edits"), manifest["count"])
    assert manifest["count"] >= 200 and manifest["seed"] == 0
    assert sum((COMMITTED / name).stat().st_size for name in manifest["sha256"]) < 3_000_000


def test_build_is_complete_and_deterministic(built, tmp_path):
    """A build that depends on the time or on the order of files cannot be checked by its hashes."""
    manifest = assert_matches_manifest(built)
    assert check(built).ok
    assert contents(samples.build(tmp_path / "again", seed=1, count=20)) == contents(built)
    other = json.loads((samples.build(tmp_path / "other", seed=2, count=2) / "manifest.json").read_text())
    assert not set(other["sha256"].values()) & {
        digest for name, digest in manifest["sha256"].items() if name.endswith("jpg")
    }


def test_pictures_show_their_scenes_and_texts_are_in_the_vocabulary(built):
    """A picture beside the text of another one would train, and teach nothing."""
    scenes = {name: json.loads((built / name / "scenes.json").read_text()) for name in samples.ENTRIES[1:4]}
    assert all(split_of(Scene.from_dict(scene)) == "train" for part in scenes.values() for scene in part.values())

    def agrees(picture, part, name):
        shown, drawn = open_picture(picture), render(Scene.from_dict(scenes[part][name]))
        return shown.size == drawn.size and np.abs(np.asarray(shown, int) - np.asarray(drawn)).mean() < 4

    texts = []
    for talk in conversations.read(built / "conversations" / "train.jsonl"):
        assert agrees(talk.image, "conversations", f"images/{talk.image.name}")
        texts += talk.data
    for pair in (p for i in (0, 1) for p in captions.read(built / "captions" / f"00000{i}.tar")):
        assert agrees(pair.image, "captions", pair.key)
        texts.append(pair.caption)
    for edit in edits.read(built / "edits" / "edits.jsonl"):
        assert all(agrees(file, "edits", f"images/{file.name}") for file in (edit.source_image, edit.target_image))
        texts.append(edit.instruction)
    said = {word for text in texts for word in words(text)}
    assert said <= {*vocabulary(), *LOCATION_TOKENS, BOX_START, BOX_END}


def test_build_touches_its_own_entries_only(tmp_path):
    """Checkpoints and results live in the same folder, and must outlive a new build."""
    folder = samples.build(tmp_path / "data_samples", count=4)
    (folder / "results").mkdir()
    (folder / "results" / "a.json").write_text("{}")
    samples.build(folder, count=2)
    assert (folder / "results" / "a.json").read_text() == "{}"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*samples.ENTRIES, "results"])
    assert len(list((folder / "edits" / "images").iterdir())) == 4
    (folder / "captions" / "mine.tar").write_bytes(b"x")
    before = contents(folder)
    with pytest.raises(FileExistsError, match=r"mine\.tar \(1 in all\) is not of this command; move it away"):
        samples.build(folder, count=2)
    assert contents(folder) == before
    (tmp_path / "manifest.json").write_text('{"name": "of another program"}')
    with pytest.raises(FileExistsError, match=r"manifest\.json \(1 in all\) is not of this command"):
        samples.build(tmp_path, count=2)


@pytest.mark.parametrize("fails", ["sample_edit", "_examples"])
def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch, fails):
    """Half a folder of samples passes for a whole one."""
    folder = samples.build(tmp_path / "there", count=2)
    before = contents(folder)

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, fails, fail)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            samples.build(target, seed=3, count=2)
    assert contents(folder) == before and [path.name for path in tmp_path.iterdir()] == ["there"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(samples.ENTRIES)
    with pytest.raises(ValueError, match="count of at least 2 expected, got 1"):
        samples.build(folder, count=1)
