"""Scenes: splits without leaks, plain errors, things large enough to be seen."""

import json
from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from seedx_lite.world import scene as world
from seedx_lite.world.scene import HELD_OUT, SEED_RANGES, SPLITS, Scene, Style, Thing, sample_scene, split_of

MANY = {
    (split, mix): [sample_scene(index, split, mix) for index in range(count)]
    for split, count in {"train": 1500, "validation": 100, "test": 100, "composition": 500}.items()
    for mix in world.MIXES
}
CAT = Thing("cat", "red", 0.5, 0.9, 0.3)


def test_no_content_in_two_splits():
    """Guards against a caption of the training set in validation or test."""
    contents = {split: {s.content for mix in world.MIXES for s in MANY[split, mix]} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not contents[one] & contents[other]
    assert all(split_of(scene) == split for (split, _), scenes in MANY.items() for scene in scenes)


def test_seed_ranges_are_apart():
    """Guards against two splits that draw from the same random stream."""
    ranges = sorted(SEED_RANGES.values())
    assert all(start < stop for start, stop in ranges)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ranges))


def test_held_out_combinations_stay_out():
    """Guards against a purple cat in training, and against a composition split that misses one."""
    shown = {
        split: {(t.kind, t.colour) for mix in world.MIXES for s in MANY[split, mix] for t in s.things}
        for split in SPLITS
    }
    for split in ("train", "validation", "test"):
        assert not shown[split] & HELD_OUT
    assert shown["composition"] >= HELD_OUT
    assert len(shown["train"]) == len(world.KINDS) * len(world.COLOURS) - len(HELD_OUT)
    for scene in MANY["composition", "narrow"]:
        assert any((thing.kind, thing.colour) in HELD_OUT for thing in scene.things)


def test_scenes_are_reproducible():
    """Guards against a scene that changes between two calls, and against mixes that share their scenes."""
    assert [sample_scene(i) for i in range(20)] == MANY["train", "narrow"][:20]
    assert len({scene.style.seed for scene in MANY["train", "narrow"]}) == len(MANY["train", "narrow"])
    assert MANY["train", "narrow"][:20] != MANY["train", "broad"][:20]
    assert {replace(scene.style, seed=0) for scene in MANY["train", "narrow"]} == {Style()}
    assert len({replace(scene.style, seed=0) for scene in MANY["train", "broad"]}) > 1000


def test_split_ignores_what_captions_do_not_say():
    """Guards against a leak through style or jitter: the same caption must stay in one split."""
    for scene in MANY["train", "narrow"][:100]:
        other = replace(scene, light=0.1, style=Style(seed=5), things=scene.things[::-1])
        assert split_of(other) == "train"


def test_things_can_be_seen():
    """Guards against people too small to show a pose, and things hidden behind others or out of the frame."""
    for scenes in MANY.values():
        for scene in scenes:
            assert 1 <= len(scene.things) <= 3 and world.is_clear(scene)
            assert all(t.size * scene.height >= 26 for t in scene.things if t.kind == "person")
    hidden = Scene((CAT, replace(CAT, y=0.95)))
    assert world.covered(hidden, 0) > 0.5 and world.covered(hidden, 1) == pytest.approx(0, abs=1e-9)
    assert not world.is_clear(hidden)
    assert not world.is_clear(Scene((replace(CAT, y=0.3),)))


def test_size_decides_how_much_fits():
    """Guards against wide pictures that stay empty and tall ones that never end their search."""
    wide = [sample_scene(index, size=(192, 64)) for index in range(60)]
    assert 3 < max(len(scene.things) for scene in wide) <= world.most_things(192, 64) == 8
    assert len(sample_scene(0, size=(192, 64), things=8).things) == 8
    assert len(sample_scene(0, size=(24, 64)).things) == 1
    assert sample_scene(5, size=(96, 64)).width == 96
    assert {len(scene.things) for scene in MANY["train", "narrow"]} == {1, 2, 3}


def test_boxes_are_in_fractions():
    """Guards against a box that is stretched with the picture."""
    thing = Thing("ball", "red", 0.5, 0.75, 0.5)
    assert Scene((thing,), width=128, height=64).box(thing) == pytest.approx((0.375, 0.25, 0.625, 0.75))
    assert Scene((thing,), width=64, height=128).box(thing) == pytest.approx((0.25, 0.5, 0.75, 0.75))
    assert [replace(CAT, x=x).place for x in (-0.1, 0.3, 0.4, 0.7, 1.2)] == ["left", "left", "middle", "right", "right"]


def test_dictionaries_come_back():
    """Guards against a field that is lost on the way through JSON."""
    for scene in MANY["train", "broad"][:50]:
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("things"),
        lambda data: data.update(weather="rain"),
        lambda data: data["things"][0].pop("kind"),
        lambda data: data["things"][0].update(colour="beige"),
        lambda data: data["style"].update(brush=1),
        lambda data: data.update(sky="noon"),
    ],
)
def test_spoiled_dictionaries_are_refused(spoil):
    """Guards against a file of another version that is read by half."""
    data = Scene((CAT,)).to_dict()
    data["things"] = list(data["things"])
    spoil(data)
    with pytest.raises(ValueError):
        Scene.from_dict(data)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(CAT, kind="lion"), "kind: one of person, cat"),
        (lambda: replace(CAT, pose="sitting"), "only people"),
        (lambda: replace(CAT, kind="person"), "pose: one of"),
        (lambda: replace(CAT, size=0), "size"),
        (lambda: replace(CAT, x=float("nan")), "finite"),
        (lambda: Scene((CAT,), width=8), "width"),
        (lambda: Scene((CAT,), height=100_000), "height"),
        (lambda: Scene((CAT,), ground="lava"), "ground"),
        (lambda: sample_scene(0, "dev"), "split: one of train"),
        (lambda: sample_scene(0, mix="wide"), "mix: one of narrow"),
        (lambda: sample_scene(-1), "index 0 to 99999999"),
        (lambda: sample_scene(10_000_000, "test"), "index 0 to 9999999"),
        (lambda: sample_scene(0, things=4), "1 to 3 things"),
        (lambda: sample_scene(0, things=0), "1 to 3 things"),
    ],
)
def test_errors_say_what_is_expected(build, message):
    """Guards against a typing mistake that surfaces far from its place."""
    with pytest.raises(ValueError, match=message):
        build()
