"""What the scene readers are trained on, and that their results come back from disk."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seedx_lite.data.drawn import draw_scenes, scenes
from seedx_lite.evaluation.scene_reader import read_scenes
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.presets import load_preset
from seedx_lite.training.reader import DAMAGE, damage, reader, reader_2, truth_table
from seedx_lite.world.scene import COLOURS, KINDS


def test_damage_is_mild_and_of_every_kind():
    """Bug: pictures that are destroyed teach guessing; pictures that are never damaged teach to trust each pixel."""
    picture = draw_scenes("train", 1).pictures[0]
    errors = [np.abs(damage(picture, np.random.default_rng(seed)) - picture.astype(float)).mean() for seed in range(60)]
    unchanged = np.mean(np.array(errors) == 0)
    assert max(errors) < 25 and unchanged == pytest.approx(np.prod([1 - share for share in DAMAGE.values()]), abs=0.15)
    again = damage(picture, np.random.default_rng(5))
    assert np.array_equal(again, damage(picture, np.random.default_rng(5))) and again.dtype == np.uint8


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
