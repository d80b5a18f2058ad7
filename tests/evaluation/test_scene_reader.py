"""Reading pictures back, and comparing what was read with what should be there."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seedx_lite.data.drawn import scenes
from seedx_lite.evaluation.scene_reader import (
    ITEMS,
    compare,
    decode,
    differs,
    disagreement,
    match,
    picture_features,
    read_scenes,
    summarise,
)
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.training.reader import NEAR, SPREAD, reader_losses, truth_table
from seedx_lite.world.scene import COLOURS, GROUNDS, KINDS, POSES, SKIES, Scene, Thing

NAMES = {"kinds": KINDS, "colours": COLOURS, "poses": POSES, "skies": SKIES, "grounds": GROUNDS}
ANSWERS = {key: list(names) for key, names in NAMES.items()}
CAT = Thing("cat", "red", 0.25, 0.8, 0.3)
MAN = Thing("person", "blue", 0.7, 0.9, 0.5, pose="waving")
SCENE = Scene((CAT, MAN), "day", "grass")


def perfect_outputs(chosen: list[Scene]) -> dict[str, torch.Tensor]:
    """What a reader without error would give: from the truth, cell by cell."""
    truth, grid = truth_table(chosen), 16
    count = len(chosen)
    read = {"centre": torch.full((count, 8, grid, grid), -9.0)}
    sizes = {"colour": 8, "pose": 5, "facing": 2, "offset": 2, "size": 2}
    read |= {name: torch.zeros(count, many, grid, grid) for name, many in sizes.items()}
    for b in range(count):
        for m in range(truth["kind"].shape[1]):
            if truth["kind"][b, m] < 0:
                continue
            x, y = (truth["centre"][b, m] * grid).tolist()
            column, row = int(x), int(y)
            read["centre"][b, truth["kind"][b, m], row, column] = 9.0
            for name in ("colour", "pose", "facing"):
                read[name][b, max(0, truth[name][b, m]), row, column] = 9.0
            read["offset"][b, :, row, column] = torch.tensor([x - column - 0.5, y - row - 0.5])
            read["size"][b, :, row, column] = (truth["size"][b, m] * grid).log()
    for name, many in (("sky", 3), ("ground", 4)):
        read[name] = torch.nn.functional.one_hot(truth[name], many).float()
    return read | {"level": truth["level"]}


def test_truth_goes_in_and_the_scene_comes_out():
    """Bug: x and y swapped, or sizes in other units, somewhere between targets, network and `Scene`."""
    chosen = scenes("validation", 40)
    for scene, read in zip(chosen, decode(perfect_outputs(chosen), ANSWERS), strict=True):
        told = compare(scene, read)
        assert told.f1 == 1 and not differs(told) and told.distance < 1e-5 and all(told.items.values())
        assert (read.sky, read.ground, read.width, read.height) == (scene.sky, scene.ground, 64, 64)
        assert read.horizon == pytest.approx(scene.horizon) and read.light == pytest.approx(scene.light)
        for one, other in zip(scene.from_left, read.from_left, strict=True):
            assert (one.kind, one.colour, one.pose, one.facing) == (other.kind, other.colour, other.pose, other.facing)
            assert np.allclose((one.x, one.y, one.size), (other.x, other.y, other.size), atol=1e-5)


def test_losses_are_least_at_the_truth():
    """Bug: a target that is shifted by a cell, or asked of the wrong thing."""
    chosen = scenes("validation", 8)
    read, truth = perfect_outputs(chosen), truth_table(chosen)
    for name in ("offset", "size"):  # asked of all cells near a centre: fill them as the truth is there
        read[name] = _spread(truth, name)
    for name, known in (("colour", 8), ("pose", 5), ("facing", 2)):
        read[name] = _spread_classes(truth, name, known)
    right = reader_losses(read, truth)
    assert right["centre"] < 0.01 and all(float(right[name]) < 1e-3 for name in ("offset", "size", "colour", "pose"))
    for name in ("centre", "offset", "colour"):
        wrong = reader_losses(read | {name: read[name].roll(2, dims=3)}, truth)
        assert wrong[name] > right[name] + 0.1, name
    wrong = reader_losses(read | {"size": read["size"] + 0.5}, truth)
    assert wrong["size"] == pytest.approx(1.0, abs=1e-3)  # half a unit in width and in height


def _nearest(truth) -> tuple[torch.Tensor, torch.Tensor]:
    """For each cell the closest thing, and where its centre is from there, in cells."""
    steps = torch.arange(16) + 0.5
    middles = torch.stack([steps.repeat(16), steps.repeat_interleave(16)], dim=1)  # x, y
    offset = truth["centre"][:, :, None] * 16 - middles
    far = offset.square().sum(-1) + 1e6 * (truth["kind"] < 0)[..., None]
    return far.argmin(1), offset


def _spread(truth, name: str) -> torch.Tensor:
    owner, offset = _nearest(truth)
    index = owner[:, None, :, None].expand(-1, 1, -1, 2)
    values = offset if name == "offset" else (truth["size"] * 16).clamp(min=0.1).log()[:, :, None].expand_as(offset)
    return values.gather(1, index)[:, 0].mT.unflatten(2, (16, 16))


def _spread_classes(truth, name: str, known: int) -> torch.Tensor:
    owner, _ = _nearest(truth)
    codes = torch.nn.functional.one_hot(truth[name].clamp(min=0).gather(1, owner), known).float() * 20
    return codes.mT.unflatten(2, (16, 16))


def test_the_bell_asks_several_cells():
    assert np.exp(-0.5 * (1 / SPREAD) ** 2) > NEAR  # the four neighbours of a centre at least


def moved(thing: Thing, **changes) -> Scene:
    return replace(SCENE, things=tuple(replace(t, **changes) if t == thing else t for t in SCENE.things))


@pytest.mark.parametrize(
    ("read", "f1", "colours", "poses"),
    [
        (SCENE, 1.0, 2, 1),
        (moved(CAT, colour="pink"), 1.0, 1, 1),
        (moved(MAN, pose="running"), 1.0, 2, 0),
        (moved(CAT, kind="dog"), 0.5, 1, 1),
        (moved(CAT, x=0.34), 1.0, 2, 1),  # .09 of the width
        (moved(CAT, x=0.36), 0.5, 1, 1),  # .11
        (replace(SCENE, things=(CAT,)), 2 / 3, 1, 0),
        (replace(SCENE, things=(CAT, MAN, replace(CAT, x=0.45))), 0.8, 2, 1),
        (replace(SCENE, things=()), 0.0, 0, 0),
    ],
)
def test_what_counts_as_found(read, f1, colours, poses):
    told = compare(SCENE, read)
    assert told.f1 == pytest.approx(f1) and (told.colours, told.poses) == (colours, poses)


def test_facing_is_asked_where_it_is_told():
    """Bug: mirrored things pass for faithful ones; or a picture is asked for a side that its caption does not tell."""
    turned = moved(CAT, facing="left")
    told = compare(SCENE, turned)
    assert (told.sided, told.facings, told.f1) == (2, 1, 1.0) and not differs(told)
    assert summarise([told])["facing"]["mean"] == 0.5
    assert "facing" not in summarise([compare(SCENE, turned, by_place=True)])


def test_one_to_one_and_the_closest():
    """Bug: two things that are read match the same true one; or a greedy choice leaves one without a match."""
    scene = replace(SCENE, things=(CAT, replace(CAT, x=0.34)))
    read = replace(SCENE, things=(replace(CAT, x=0.33), replace(CAT, x=0.42)))
    assert [(i, j) for i, j, _ in match(scene, read)] == [(0, 0), (1, 1)]
    assert len(match(scene, replace(SCENE, things=(CAT,)))) == 1


def test_a_caption_tells_the_third_only():
    """Bug: a picture drawn from words is asked for a place that the words do not tell."""
    elsewhere = moved(CAT, x=0.05, y=0.95)
    assert compare(SCENE, elsewhere).matched == 1 and compare(SCENE, elsewhere, by_place=True).matched == 2
    assert compare(SCENE, moved(CAT, x=0.4), by_place=True).matched == 1


def test_items_are_asked_where_they_apply():
    one = replace(SCENE, things=(CAT,))
    assert set(compare(one, one).items) == {"single_object", "counting", "colours", "position"}
    assert set(compare(SCENE, SCENE).items) == {"two_objects", "counting", "position", "attribution"}
    swapped = replace(SCENE, things=(replace(CAT, colour="blue"), replace(MAN, colour="red")))
    told = compare(SCENE, swapped).items
    assert told["two_objects"] and told["counting"] and not told["attribution"]
    assert set(summarise([compare(one, one), compare(SCENE, SCENE)])) >= set(ITEMS)


def test_summary_is_of_things_not_of_pictures():
    """Bug: a share of things as a mean over pictures counts those with one thing as much as those with three."""
    half = compare(SCENE, moved(CAT, colour="pink"))  # one of two colours
    one = replace(SCENE, things=(CAT,))
    told = summarise([half, compare(one, one)])
    assert told["colour"]["mean"] == pytest.approx(2 / 3) and told["background"]["mean"] == 1
    assert told["colour"]["low"] <= 2 / 3 <= told["colour"]["high"]
    assert "pose" not in summarise([compare(one, one)])


def test_disagreement_of_two_readings():
    assert disagreement([SCENE] * 4, [SCENE] * 4) == dict.fromkeys(
        ("things", "colour", "pose", "background", "pictures"), 0
    )
    told = disagreement([SCENE, SCENE], [moved(CAT, colour="pink"), replace(SCENE, sky="night")])
    assert (told["colour"], told["background"], told["pictures"]) == (0.25, 0.5, 1.0)


def test_close_centres_are_one_thing():
    """Bug: a cat that might be a dog is read as both."""
    chosen = [replace(SCENE, things=(CAT,))]
    read = perfect_outputs(chosen)
    row, column = (int(v) for v in divmod(int(read["centre"][0].amax(0).flatten().argmax()), 16))
    read["centre"][0, KINDS.index("dog"), row, column + 1] = 5.0
    read["offset"][0, 0, row, column + 1] = -0.5
    (scene,) = decode(read, ANSWERS)
    assert [thing.kind for thing in scene.things] == ["cat"]


def test_pictures_of_other_kinds_are_refused():
    reader = SceneReader("convolution", 32, 1, **ANSWERS).eval()
    for odd in ([], [np.zeros((32, 32, 3))], [np.zeros((32, 32, 3), np.uint8), np.zeros((32, 40, 3), np.uint8)]):
        with pytest.raises(ValueError, match="uint8"):
            read_scenes(reader, odd)
    vectors = picture_features(reader, [np.full((32, 32, 3), 90, np.uint8)] * 3)
    assert vectors.shape == (3, 64) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
