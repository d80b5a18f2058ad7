"""Scenes as arrays, the truth on the tokens' grid, and the cache of both."""

import multiprocessing

import numpy as np
import pytest

from seedx_lite.data import drawn as module
from seedx_lite.data.drawn import COLOUR_CLASSES, KIND_CLASSES, PART_CLASSES, POSE_CLASSES, draw_scenes, scenes
from seedx_lite.world.draw import render
from seedx_lite.world.scene import sample_scene


@pytest.fixture(scope="module")
def truth():
    return draw_scenes("train", 24)


def test_shapes_and_classes(truth):
    assert truth.pictures.shape == (24, 64, 64, 3) and truth.box.shape == (24, 256, 4)
    for name, classes in (
        ("kind", KIND_CLASSES), ("colour", COLOUR_CLASSES), ("part", PART_CLASSES), ("pose", POSE_CLASSES)
    ):  # fmt: skip
        found = getattr(truth, name)
        assert found.shape == (24, 256) and found.max() < len(classes)


def test_cells_tell_what_the_scene_says(truth):
    """Bug: rows and columns swapped, or the colour of one thing with the kind of another, spoils the ViT silently."""
    for index in range(24):
        scene = sample_scene(index)
        told = {
            (KIND_CLASSES[k], COLOUR_CLASSES[c]) for k, c in zip(truth.kind[index], truth.colour[index], strict=True)
        }
        things = {(thing.kind, thing.colour) for thing in scene.things}
        assert {pair for pair in told if pair[1] != "none"} <= things
        for thing in scene.things:
            left, top, right, bottom = scene.box(thing)
            mine = (
                np.abs(truth.box[index] - [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) < 1e-5
            )
            cells = np.flatnonzero(mine.all(1))
            assert len(cells), thing
            rows, columns = (cells // 16 + 0.5) / 16, (cells % 16 + 0.5) / 16
            assert (rows > top - 0.05).all() and (rows < bottom + 0.05).all()
            assert (columns > left - 0.05).all() and (columns < right + 0.05).all()


def test_sky_lies_above_the_ground(truth):
    for kind in truth.kind:
        assert KIND_CLASSES.index("ground") not in kind[:16]
        assert (kind[-16:] != KIND_CLASSES.index("sky")).all()


def test_pictures_are_those_of_the_scenes(tmp_path):
    """Chunks drawn by several processes must come back in order, also in pictures that are not square."""
    pictures = draw_scenes("validation", 70, "broad", (32, 16), 8, cache=tmp_path).pictures
    assert pictures.shape == (70, 16, 32, 3) and pictures.dtype == np.uint8 and not pictures.flags.writeable
    for index in (0, 63, 64, 69):
        assert (pictures[index] == np.asarray(render(sample_scene(index, "validation", "broad", (32, 16))))).all()
    assert scenes("validation", 3, "broad", (32, 16))[2] == sample_scene(2, "validation", "broad", (32, 16))


def test_drawn_once_and_again_when_the_drawing_changes(tmp_path, monkeypatch):
    """A cache that outlives a change of the drawing trains on pictures that nothing else shows."""
    first = draw_scenes("train", 3, size=(16, 16), cache=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "render_truth", None)
        again = draw_scenes("train", 3, size=(16, 16), cache=tmp_path)
        assert all((new == old).all() for new, old in zip(vars(again).values(), vars(first).values(), strict=True))
        for other in ({"split": "test"}, {"count": 4}, {"mix": "broad"}, {"grid": 8}):
            with pytest.raises(TypeError):
                draw_scenes(**{"split": "train", "count": 3, "size": (16, 16), "cache": tmp_path, **other})
    monkeypatch.setattr(module, "world_hash", lambda without: "changed")
    draw_scenes("train", 3, size=(16, 16), cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["train-narrow-16x16-16-3-changed"]


def _draw(cache, log):
    def draw(index):
        log.open("a").write(f"{index}\n")
        return (np.zeros((2, 2, 3), np.uint8),) * 3

    module._drawn(module.DrawnEdits, draw, 64, "edits", "code", cache)


def test_two_processes_draw_once(tmp_path):
    """Bug: cells of a grid that begin together each draw all training scenes, for minutes."""
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_draw, args=(tmp_path / "cache", tmp_path / "log")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == 64


def test_words_do_not_redraw(tmp_path, monkeypatch):
    """Renaming a colour in a caption must not cost a minute of drawing; changing a brush must."""
    for name in ("__init__.py", "draw.py", "language.py"):
        (tmp_path / name).write_text("a = 1")
    monkeypatch.setattr(module.world, "__file__", str(tmp_path / "__init__.py"))
    before = module.world_hash(module.WORDS)
    (tmp_path / "language.py").write_text("a = 2")
    assert module.world_hash(module.WORDS) == before
    (tmp_path / "draw.py").write_text("a = 2")
    assert module.world_hash(module.WORDS) != before


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def fail(scene):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "render_truth", fail)
    with pytest.raises(KeyboardInterrupt):
        draw_scenes("train", 2, cache=tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    for arguments, message in (
        (("train", 0), "count of at least 1"), (("trian", 2), "split"),
        (("train", 1, "narrow", (72, 64)), "multiples of the grid 16"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            draw_scenes(*arguments, cache=tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
