"""What the scene readers are trained on, and that their results come back from disk."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seedx_lite.data.drawn import draw_scenes, plain_sky, scenes
from seedx_lite.evaluation.scene_reader import read_scenes
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.presets import load_preset
from seedx_lite.training.reader import DAMAGE, damage, reader, reader_2, truth_table
from seedx_lite.world.draw import render_truth
from seedx_lite.world.scene import COLOURS, KINDS


@pytest.mark.parametrize(("kind", "most"), [("no sun", 12), ("blur", 6), ("noise", 6), ("compression", 12)])
def test_damage_is_mild_and_of_every_kind(monkeypatch, kind, most):
    """Bug: pictures that are destroyed teach guessing; pictures that are never damaged teach to trust each pixel."""
    for name in DAMAGE:
        monkeypatch.setitem(DAMAGE, name, float(name == kind))
    drawn = draw_scenes("train", 12, "broad")
    for number, (picture, kinds) in enumerate(zip(drawn.pictures, drawn.kind, strict=True)):
        damaged = damage(picture, kinds, np.random.default_rng(number))
        assert 0 < np.abs(damaged - picture.astype(float)).mean() < most and damaged.dtype == np.uint8
        assert np.array_equal(damaged, damage(picture, kinds, np.random.default_rng(number)))


def test_a_plain_sky_cuts_nothing_off_things():
    """Bug: heads and raised arms painted over as sky, with boxes that still hold them."""
    drawn = draw_scenes("train", 60, "broad")
    for scene, picture, kinds in zip(scenes("train", 60, "broad"), drawn.pictures, drawn.kind, strict=True):
        changed = (plain_sky(picture, kinds) != picture).any(-1)
        _, truth = render_truth(scene)
        assert (changed & truth.masks.any(0)).sum() <= 4
        assert changed.any(), "there is a sun, a moon or a cloud in every sky"


def test_truth_table_tells_each_thing():
    chosen = scenes("train", 20)
    truth = truth_table(chosen)
    for row, scene in enumerate(chosen):
        count = len(scene.things)
        assert (truth["kind"][row, :count] >= 0).all() and (truth["kind"][row, count:] == -1).all()
        for column, thing in enumerate(scene.things):
            left, top, right, bottom = scene.box(thing)
            assert truth["centre"][row, column].tolist() == pytest.approx([(left + right) / 2, (top + bottom) / 2])
            assert KINDS[truth["kind"][row, column]] == thing.kind
            assert COLOURS[truth["colour"][row, column]] == thing.colour
            assert (truth["pose"][row, column] >= 0) == (thing.pose is not None)


@pytest.mark.parametrize("train", [reader, reader_2])
def test_smoke_reader_reads(tmp_path, train):
    folder = train(load_preset("smoke"), runs=tmp_path)
    model = SceneReader.from_pretrained(folder)
    kept = load_file(folder / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    assert model.config["backbone"] == {reader: "convolution", reader_2: "transformer"}[train]
    assert len(read_scenes(model, draw_scenes("test", 3, size=(32, 32)).pictures)) == 3
    assert folder.name == f"{train.__name__}-seed0"
