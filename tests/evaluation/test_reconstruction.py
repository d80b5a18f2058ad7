"""The measures of a reconstruction, on pictures whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from seedx_lite.data.drawn import draw_scenes
from seedx_lite.evaluation.reconstruction import (
    Target,
    colour_error,
    judge,
    main_colours,
    nearest_pictures,
    part_ious,
    thing_iou,
)
from seedx_lite.evaluation.statistics import agreement, interval
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline
from seedx_lite.world.scene import Scene, Thing, sample_scene


@pytest.fixture(scope="module")
def targets():
    return [Target.of(sample_scene(index, "test")) for index in range(6)]


def test_originals_are_the_ceiling(targets):
    """Bug: shadows or soft edges count as parts of things, so that not even the truth scores."""
    numbers = judge(targets, [target.picture for target in targets])
    assert numbers["colour_error"] == [0.0] * 6
    assert min(numbers["thing_iou"]) > 0.9


def test_what_is_worse_scores_worse(targets):
    """Bug: a measure that does not see a thing that is moved, gone, or lost in an average."""
    mean = np.mean([target.picture for target in targets], axis=0).astype(np.uint8)
    for target in targets:
        moved = [np.roll(target.picture, step, axis=1) for step in (0, 1, 3, 8)]
        scores = [thing_iou(target, picture) for picture in moved]
        errors = [colour_error(target, picture) for picture in moved]
        assert scores == sorted(scores, reverse=True) and errors == sorted(errors)
        assert thing_iou(target, mean) < 0.6 * scores[0]
        assert colour_error(target, mean) > 20


def test_small_parts_are_lost_first():
    """Bug: a measure of parts that a blurred or a shifted picture passes, or that not even the truth does."""
    many = [Target.of(sample_scene(index, "test")) for index in range(24)]
    with_parts = [target for target in many if target.parts]
    assert len(with_parts) > 8 and all(len(part_ious(t, t.picture)) == len(t.parts) for t in many)
    scores = {"true": [], "blurred": [], "shifted": [], "without": []}
    for target in with_parts:
        blurred = Image.fromarray(target.picture).filter(ImageFilter.GaussianBlur(2))
        scores["true"].extend(part_ious(target, target.picture))
        scores["blurred"].extend(part_ious(target, np.asarray(blurred)))
        scores["shifted"].extend(part_ious(target, np.roll(target.picture, 4, axis=1)))
        scores["without"].extend(part_ious(target, np.full_like(target.picture, target.picture[0, 0])))
    means = {name: np.mean(values) for name, values in scores.items()}
    assert means["true"] > 0.7 and max(means[name] for name in ("blurred", "shifted", "without")) < 0.6, means


def test_a_thing_that_is_not_there():
    """Bug: an empty place scores because others of the picture are right."""
    scene = Scene(things=(Thing("ball", "red", 0.25, 0.8, 0.3), Thing("car", "blue", 0.7, 0.9, 0.25)))
    target = Target.of(scene)
    without_ball = replace(target, **{name: getattr(target, name)[:1] for name in ("masks", "windows", "without")})
    without_ball = replace(without_ball, palettes=target.palettes[:1])
    assert thing_iou(without_ball, target.without[0]) == 0
    assert thing_iou(target, target.without[0]) == pytest.approx(0.5, abs=0.05)


def test_only_the_things_count(targets):
    """Bug: errors of the background are counted as errors of things, or outside of the boxes."""
    target = targets[0]
    picture = np.where(target.masks.any(0)[..., None], target.picture, 0).astype(np.uint8)
    assert colour_error(target, picture) == 0
    far = ~target.windows.any(0) & ~target.masks.any(0)
    picture = np.where(far[..., None], 255 - target.picture, target.picture).astype(np.uint8)
    assert thing_iou(target, picture) == thing_iou(target, target.picture)


def test_colour_error_is_in_levels(targets):
    """Bug: uint8 arithmetic that wraps around."""
    target = replace(targets[0], picture=np.full_like(targets[0].picture, 250))
    assert colour_error(target, np.full_like(target.picture, 3)) == 247


def test_neighbours_are_left_out():
    """Bug: the colours of a thing next to it are taken for the thing."""
    scene = Scene(things=(Thing("ball", "red", 0.4, 0.8, 0.3), Thing("ball", "red", 0.6, 0.8, 0.3, look=3)))
    target = Target.of(scene)
    assert thing_iou(target, target.picture) > 0.9
    assert not (target.windows[0] & target.masks[1]).any()


def test_main_colours():
    """Bugs: colours that change from call to call; more colours than there are; a flat patch that never ends."""
    rng = np.random.default_rng(0)
    centres = np.array([[10, 20, 30], [200, 40, 40], [90, 220, 120]])
    pixels = np.concatenate([centre + rng.integers(-3, 4, (40, 3)) for centre in centres])
    found = main_colours(pixels, 3)
    assert np.array_equal(found, main_colours(pixels, 3))
    assert np.abs(found[np.argsort(found[:, 0])] - centres[np.argsort(centres[:, 0])]).max() < 2
    assert main_colours(np.tile([[7, 8, 9]], (50, 1))).tolist() == [[7, 8, 9]]


def test_judge_refuses_what_it_cannot_compare(targets):
    """Bug: a picture in 0..1, or of another size, is judged without a word."""
    picture = targets[0].picture
    for wrong in (picture / 255.0, picture[:32], picture[..., :1]):
        with pytest.raises(ValueError, match=r"picture 0 is .* expected uint8 \[64, 64, 3\]"):
            judge(targets[:1], [wrong])
    with pytest.raises(ValueError, match="1 pictures for 6 scenes"):
        judge(targets, [picture])


def test_interval():
    """Bugs: a biased deviation, one side of the level, or a normal distribution, too narrow for five seeds."""
    reach = 2.77645 * np.sqrt(2.5 / 5)  # t of 4 degrees of freedom, from a table
    assert interval([1, 2, 3, 4, 5]) == pytest.approx({"mean": 3, "low": 3 - reach, "high": 3 + reach}, rel=1e-5)
    assert interval([7.0, 7.0]) == {"mean": 7.0, "low": 7.0, "high": 7.0}
    with pytest.raises(ValueError, match="two values or more, got 1"):
        interval([1.0])


def test_agreement():
    """Bug: a tolerance that another model, or a result that is not a number, passes."""
    stored = {"colour_error": [10.0, 12.0, 9.0], "thing_iou": [0.8, 0.7, 0.9]}
    tolerance = {"colour_error": 0.1, "thing_iou": 0.01}
    close = {"colour_error": [10.05, 11.9, 9.0], "thing_iou": [0.8, 0.71, 0.9]}
    assert agreement(stored, close, tolerance) == "agrees"
    shuffled = {key: values[::-1] for key, values in stored.items()}  # same mean, other pictures
    untrained = {"colour_error": [60.0, 40.0, 55.0], "thing_iou": [0.3, 0.2, 0.3]}
    broken = stored | {"thing_iou": [0.8, float("nan"), 0.9]}
    for wrong in (shuffled, untrained, broken):
        assert agreement(stored, wrong, tolerance).startswith("DISAGREES")
    with pytest.raises(ValueError, match="compare like with like"):
        agreement(stored, {"colour_error": [1.0], "thing_iou": [1.0]}, tolerance)


def test_nearest_picture_of_a_training_picture_is_itself(detokenizer_parts):
    """Bugs: a baseline that is weak because what all pictures share hides what they differ in; a batch left out."""
    pipe = DetokenizerPipeline(**detokenizer_parts, vit_down=4)
    training = draw_scenes("train", 70, size=(32, 32)).pictures
    chosen = [0, 3, 64, 69]
    found = nearest_pictures(pipe, training[chosen], training)
    assert found == {"nearest_mean": chosen, "nearest": chosen}
    with torch.no_grad():
        pipe.vit.ln_post.bias += 50  # the same for all
        assert nearest_pictures(pipe, training[chosen], training) == found
        pipe.vit.ln_post.bias -= 50
