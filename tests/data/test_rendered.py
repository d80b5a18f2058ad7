import numpy as np
import pytest

from seedx_lite.data import rendered as module
from seedx_lite.data.rendered import rendered, scenes
from seedx_lite.world.draw import render
from seedx_lite.world.scene import sample_scene


def test_pictures_are_those_of_the_scenes(tmp_path):
    """Chunks drawn by several processes must come back in order, also in pictures that are not square."""
    pictures = rendered("validation", 70, "broad", (32, 16), cache=tmp_path)
    assert pictures.shape == (70, 16, 32, 3) and pictures.dtype == np.uint8 and not pictures.flags.writeable
    for index in (0, 63, 64, 69):
        assert (pictures[index] == np.asarray(render(sample_scene(index, "validation", "broad", (32, 16))))).all()
    assert scenes("validation", 3, "broad", (32, 16))[2] == sample_scene(2, "validation", "broad", (32, 16))


def test_drawn_once_and_again_when_the_drawing_changes(tmp_path, monkeypatch):
    """A cache that outlives a change of the drawing trains on pictures that nothing else shows."""
    first = rendered("train", 3, size=(16, 16), cache=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "render", None)
        assert (rendered("train", 3, size=(16, 16), cache=tmp_path) == first).all()
        for other in (("test", 3), ("train", 4), ("train", 3, "broad")):
            with pytest.raises(TypeError):
                rendered(*other, size=(16, 16), cache=tmp_path)
    monkeypatch.setattr(module, "_drawing_code", lambda: "changed")
    monkeypatch.setattr(module, "render", lambda scene: np.zeros((16, 16, 3), np.uint8))
    assert not rendered("train", 3, size=(16, 16), cache=tmp_path).any()
    assert [path.name for path in tmp_path.iterdir()] == ["train-narrow-16x16-3-changed.npy"]


def test_words_do_not_redraw(tmp_path, monkeypatch):
    """Renaming a colour in a caption must not cost a minute of drawing; changing a brush must."""
    for name in ("__init__.py", "draw.py", "language.py"):
        (tmp_path / name).write_text("a = 1")
    monkeypatch.setattr(module.world, "__file__", str(tmp_path / "__init__.py"))
    before = module._drawing_code()
    (tmp_path / "language.py").write_text("a = 2")
    assert module._drawing_code() == before
    (tmp_path / "draw.py").write_text("a = 2")
    assert module._drawing_code() != before


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def fail(scene):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "render", fail)
    with pytest.raises(KeyboardInterrupt):
        rendered("train", 2, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="count of at least 1"):
        rendered("train", 0, cache=tmp_path)
    with pytest.raises(ValueError, match="split"):
        rendered("trian", 2, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
