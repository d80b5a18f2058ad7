"""Pictures and the truth about them."""

from dataclasses import replace

import numpy as np
import pytest

from seedx_lite.world.brush import PARTS
from seedx_lite.world.draw import render, render_truth
from seedx_lite.world.scene import COLOURS, GROUNDS, KINDS, POSES, SKIES, Scene, Style, Thing, sample_scene
from seedx_lite.world.things import RGB

LOOKS = [(kind, None) for kind in KINDS[1:]] + [("person", pose) for pose in POSES]


def alone(kind: str, pose: str | None = None, colour: str = "red", facing: str = "right", **scene) -> Scene:
    size = {"person": 0.5, "house": 0.5, "tree": 0.55}.get(kind, 0.32)
    return Scene((Thing(kind, colour, 0.5, 0.92, size, facing, pose),), **scene)


@pytest.mark.parametrize(("kind", "pose"), LOOKS)
@pytest.mark.parametrize("facing", ["left", "right"])
def test_a_drawing_fills_the_box_that_the_scene_promises(kind, pose, facing):
    """Boxes in text and training come from the scene alone: a stroke that leaves its box would make them wrong."""
    scene = alone(kind, pose, facing=facing)
    left, top, right, bottom = np.array(scene.box(scene.things[0])) * 64
    drawn = render_truth(scene)[1].boxes[0]
    assert np.abs(drawn - [left, top, right, bottom]).max() < 1.6


def test_pictures_are_the_same_every_time_and_differ_by_seed():
    """A global random state would make the cache, the samples and the edits differ from run to run."""
    scene = sample_scene(3, mix="broad")
    first, again = (np.asarray(render(scene)) for _ in range(2))
    assert np.array_equal(first, again)
    other = replace(scene, style=replace(scene.style, seed=scene.style.seed + 1))
    assert not np.array_equal(first, np.asarray(render(other)))


@pytest.mark.parametrize("size", [(64, 64), (192, 64), (64, 128), (97, 61)])
def test_any_size_and_aspect(size):
    """Odd sides once shifted the label maps against the picture."""
    picture, truth = render_truth(sample_scene(5, size=size))
    assert picture.size == size
    assert truth.masks.shape[1:] == truth.owner.shape == truth.parts.shape[1:] == size[::-1]


def test_at_least_seventy_percent_of_each_thing_is_seen():
    """Sampling reasons with boxes; what counts is how much of the drawn shape is left, in both mixes."""
    scenes = [sample_scene(index, mix=mix) for index in range(150) for mix in ("narrow", "broad")]
    worst = min(render_truth(scene)[1].visible.min() for scene in scenes)
    assert worst >= 0.7


@pytest.mark.parametrize("pose", POSES)
def test_people_are_tall_and_their_limbs_wide_enough_to_measure(pose):
    """Posture shows in limbs: at 64 px the smallest person has 26 px, its limbs 2.5 px."""
    small = Scene((Thing("person", "blue", 0.5, 0.95, 0.42, "right", pose),))
    truth = render_truth(small, supersample=8)[1]
    assert truth.boxes[0, 3] - truth.boxes[0, 1] >= 26
    limbs = truth.parts[PARTS.index("arm")] | truth.parts[PARTS.index("leg")]
    assert limbs.sum() >= 40
    elbow, hand = (np.array(truth.joints[0][name]) for name in ("elbow_b", "hand_b"))
    middle, along = (elbow + hand) / 2, (hand - elbow) / np.linalg.norm(hand - elbow)
    across = np.array([-along[1], along[0]])
    large = Scene((Thing("person", "blue", 0.5, 0.95, 0.42, "right", pose),), width=512, height=512)
    arm = render_truth(large, supersample=1)[1].parts[PARTS.index("arm")]
    steps = np.arange(-40, 41)
    x, y = (middle[:, None] * 8 + across[:, None] * steps).round().astype(int)
    assert arm[y.clip(0, 511), x.clip(0, 511)].sum() / 8 >= 2.5


def test_masks_joints_and_parts_fit_each_other():
    """A part outside every thing, or a joint off its person, means the label map was pasted elsewhere."""
    for index in range(40):
        scene = sample_scene(index)
        truth = render_truth(scene)[1]
        assert not (truth.parts.any(0) & (truth.owner < 0)).sum() > 6  # soft edges round either way
        assert (truth.masks.sum(0) <= 1).all()
        for thing, joints, box in zip(scene.things, truth.joints, truth.boxes, strict=True):
            assert bool(joints) == (thing.kind == "person")
            for x, y in joints.values():
                assert box[0] - 2.5 <= x <= box[2] + 2.5
                assert box[1] - 2.5 <= y <= box[3] + 2.5


def test_colours_stay_apart_under_every_light():
    """At night a first tint made yellow and orange, blue and purple the same: colour answers were a coin toss."""
    plain = Style(palette=0.0, texture=0.0)
    for sky in SKIES:
        means = {}
        for colour in COLOURS:
            scene = alone("ball", colour=colour, sky=sky, style=plain)
            picture, truth = render_truth(scene)
            means[colour] = np.median(np.asarray(picture)[truth.masks[0]], axis=0)
        gaps = [np.linalg.norm(means[a] - means[b]) for a in COLOURS for b in COLOURS if a < b]
        assert min(gaps) > 30, sky


def test_backgrounds_differ():
    """Each sky and ground has to be told from the others by its mean colour alone."""
    plain = Style(palette=0.0)
    rows = {"sky": slice(0, 16), "ground": slice(44, 64)}
    for name, options in (("sky", SKIES), ("ground", GROUNDS)):
        colours = [np.asarray(render(Scene((), **{name: o}, style=plain)))[rows[name]].mean((0, 1)) for o in options]
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
        assert min(gaps) > 25


def test_bad_scales_are_refused():
    with pytest.raises(ValueError, match="supersample 1 to 8"):
        render(sample_scene(0), supersample=0)


def test_every_colour_has_a_paint():
    assert set(RGB) == set(COLOURS)
