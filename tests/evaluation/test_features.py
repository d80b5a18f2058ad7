"""Probes on features whose content is known in closed form."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seedx_lite.artifacts import SHIPPED, project_path
from seedx_lite.data.drawn import draw_scenes
from seedx_lite.evaluation import features
from seedx_lite.evaluation.records import load_record, numbers, record_path, save_record, verdict
from seedx_lite.models.readers import TokenHeads
from seedx_lite.models.vit import VisionTransformerWithAttnPool
from seedx_lite.world.scene import sample_scene

GRID, CELLS = 16, 256


@pytest.fixture(scope="module")
def drawn():
    """Scenes of two splits with their truth: 80 to fit on, so that all poses are there, 20 to measure on."""
    counts = {"validation": 80, "test": 20}
    return {split: draw_scenes(split, count) for split, count in counts.items()}


def sample(drawn, split, tokens_of):
    truth = drawn[split]
    tokens = torch.tensor(tokens_of(truth), dtype=torch.float32)
    return features.Sample([sample_scene(i, split) for i in range(len(tokens))], truth, tokens)


def telling(truth):
    """Tokens that hold row, column, centre of the thing, and kind, colour and part as codes, turned by a rotation."""
    place = np.stack(np.divmod(np.arange(CELLS), GRID), axis=-1) / GRID  # [T, 2]
    place = np.broadcast_to(place, (len(truth.kind), CELLS, 2))
    codes = [np.eye(len(c))[getattr(truth, name)] for name, c in features.CLASSES.items()]
    plain = np.concatenate([place, truth.box[..., :2], *codes], axis=-1)
    return plain @ np.linalg.qr(np.random.default_rng(0).normal(size=(plain.shape[-1],) * 2))[0]


def noise(truth):
    return np.random.default_rng(len(truth.kind)).normal(size=(*truth.kind.shape, 35))


def test_probe_reads_what_is_there(drawn):
    """Bugs: rows and columns swapped, cells in another order than the truth, classes shifted by one."""
    fit, test = (sample(drawn, split, telling) for split in ("validation", "test"))
    found = features.probe(fit, test, CELLS)
    assert found["row_error"] < 0.01 and found["column_error"] < 0.01
    sure = ("row", "column", "things", "centre_near", "centres", "kind", "colour", "pose", "small_part")
    assert {name: found[name] for name in sure} == dict.fromkeys(sure, 1.0)


def test_pooling_loses(drawn):
    """Bug: a probe that is told which of its cells it is asked about, so that pooling costs nothing."""
    fit, test = (sample(drawn, split, telling) for split in ("validation", "test"))
    at = {n: features.probe(fit, test, n) for n in (256, 64, 32)}
    for name in ("things", "small_part"):
        assert at[256][name] > at[64][name] > at[32][name], name
    assert at[64]["row_error"] < 0.01, "a run of four lies in one row"


def test_probe_reads_nothing_from_noise(drawn):
    """Bug: the truth leaks into the probe, or chance scores high."""
    fit, test = (sample(drawn, split, noise) for split in ("validation", "test"))
    found = features.probe(fit, test, 64)
    assert found["row_error"] > 3 and found["column_error"] > 3, "a guess in the middle is 4 cells off"
    assert max(found["things"], found["centre_near"], found["row"]) < 0.1 and found["column"] < 0.3
    assert max(found["kind"], found["colour"]) < 0.45


def test_centres_of_tokens_on_two_things():
    """Bug: a pooled token over two things is asked for the mean of their centres."""
    kind, box = np.zeros((1, 4), dtype=np.uint8), np.zeros((1, 4, 4), dtype=np.float32)
    kind[0, 1:], box[0, 1], box[0, 2:] = 2, (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.3, 0.4)
    truth = features.Drawn(np.zeros((1, 4, 4, 3)), kind, kind, kind, kind, box)
    one = features.Sample([], truth, torch.zeros(1, 4, 3))
    alone, centres, share = features._centres(one, 2)
    assert alone.tolist() == [True, True] and share.tolist() == [0.5, 1]
    assert np.allclose(centres, [(0.1, 0.2), (0.5, 0.6)])
    assert features._centres(one, 1)[0].tolist() == [False]


def test_things_are_centred_by_what_their_tokens_say_together():
    """Bugs: a token on the rim counts as much as one on the thing; a thing without any token is not missed."""
    scenes = [SimpleNamespace(things=(1, 2))]  # two things, of which one has tokens
    votes, centre = np.array([[0.5, 0.5], [0.9, 0.5]]), np.array([[0.5, 0.5]] * 2)
    rows = np.array([0, 0])
    assert features._things_centred(votes, np.array([1.0, 0.05]), rows, centre, scenes) == 0.5
    assert features._things_centred(votes, np.array([1.0, 1.0]), rows, centre, scenes) == 0


def test_first_scenes_of_a_sample():
    truth = features.Drawn(*(np.arange(6).reshape(3, 2) for _ in range(6)))
    few = features.Sample(["a", "b", "c"], truth, torch.arange(3)).first(2)
    assert few.scenes == ["a", "b"] and len(few.truth.kind) == len(few.tokens) == 2


def test_fit_linear():
    """Bug: no constant, or a ridge that depends on the scale of the features."""
    x = np.random.default_rng(0).normal(size=(200, 3)) * 1e-3
    y = x @ [[2.0], [0.0], [-1.0]] + 7
    assert np.allclose(features.fit_linear(x, y, ridge=1e-9)(x), y, atol=1e-5)
    with pytest.raises(ValueError, match=r"weights \[200\] for 200 rows"):
        features.fit_linear(x, y, np.ones(200))
    heavy = np.where(np.arange(200) < 100, 1.0, 0.0)[:, None]  # rows without weight may say anything
    assert np.allclose(features.fit_linear(x, np.where(heavy, y, 99), heavy, ridge=1e-9)(x), y, atol=1e-5)


def test_nearest_ignores_what_all_share():
    """Bugs: a picture is its own neighbour; a large common part makes all alike."""
    means = torch.tensor([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [0.9, 0.1]]) + 100
    assert features.nearest(means[:, None].repeat(1, 5, 1)).tolist() == [1, 0, 3, 2]


def test_record_and_verdict(tmp_path):
    """Bugs: a wrong checkpoint that agrees; a machine's last digits in compared output."""
    record = {"preset": "tiny", "seed": 0, "scenes": 3, "tolerance": 0.01, "reading": {"kind": 0.912345}}
    path = save_record("vit", record, tmp_path)
    assert path == record_path("vit", "tiny", runs=tmp_path)
    stored = load_record("vit", "tiny", runs=tmp_path)
    assert load_record("vit", "tiny", 1, tmp_path) is None
    assert numbers(stored) == {"tolerance": 0.01, "reading.kind": 0.9123}
    small = save_record("small", record | {"rate": 2.5e-4}, tmp_path)
    assert json.loads(small.read_text())["rate"] == 2.5e-4, "a learning rate that is rounded to another"
    lines = {verdict(stored, {"reading": {"kind": value}}, "reading.kind") for value in (0.91, 0.915, 0.9123)}
    assert lines == {"0.9123 computed again: agrees, ± 0.01"}
    assert "DIFFERS, 0.9300" in verdict(stored, {"reading": {"kind": 0.93}}, "reading.kind")
    assert "0.930, no stored record" in verdict(None, {"reading": {"kind": 0.93}}, "reading.kind")
    for damaged in ('{"preset": "tiny"', '{"preset": "tiny"}', '{"tolerance": "x"}'):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"vit-seed0\.json is damaged"):
            load_record("vit", "tiny", runs=tmp_path)


def test_shipped_vit_has_the_recorded_numbers():
    """Bugs: a ViT trained again without measuring again; a tolerance so wide that other weights pass."""
    folder, stored = project_path(SHIPPED) / "lite" / "vit", load_record("vit", "lite")
    tower = VisionTransformerWithAttnPool.from_pretrained(folder).requires_grad_(False)
    heads = TokenHeads.from_pretrained(folder / "heads").requires_grad_(False)

    def verdicts():
        test = features.embed_split(tower, stored["split"], stored["scenes"])
        computed = {"reading": features.reading(heads(test.tokens), test.truth)}
        return {key: verdict(stored, computed, key) for key in numbers(computed)}

    assert all("agrees" in line for line in verdicts().values()), verdicts()
    noise = torch.randn(tower.conv1.weight.shape, generator=torch.Generator().manual_seed(0))
    tower.conv1.weight.add_(0.3 * tower.conv1.weight.std() * noise)
    differing = [key for key, line in verdicts().items() if "DIFFERS" in line]
    assert len(differing) > 3, f"another ViT must fail the check, but only {differing} differ"
