"""What counts as a successful edit, on readings whose verdict is known."""

from dataclasses import replace

import numpy as np
import pytest

from seedx_lite.evaluation import editing
from seedx_lite.evaluation.editing import (
    held_edits,
    judge_edits,
    outside_error,
    success,
    worded_content,
    worded_outside,
    worded_success,
)
from seedx_lite.world.edits import EDITS, Edit, sample_edit
from seedx_lite.world.scene import COLOURS, Scene, Thing


@pytest.mark.parametrize("kind", EDITS)
def test_target_succeeds_and_source_does_not(kind):
    """Bug: a rule that copying the source satisfies."""
    for index in range(12):
        edit = sample_edit(index, "test", kind=kind)
        assert success(edit, edit.target) and not success(edit, edit.source)


def test_only_the_change_counts():
    edit = next(e for e in (sample_edit(k, "test", kind="recolour") for k in range(99)) if len(e.target.things) == 2)
    kept = next(thing for thing in edit.target.things if thing in edit.source.things)
    new = next(thing for thing in edit.target.things if thing is not kept)
    another = next(colour for colour in COLOURS if colour != kept.colour)
    things = (new, replace(kept, colour=another))
    assert success(edit, replace(edit.target, things=things))
    assert not success(edit, replace(edit.target, things=(kept,)))
    assert not success(edit, replace(edit.target, sky="night" if edit.target.sky != "night" else "day"))


def test_outside_error():
    target = np.zeros((4, 4, 3), np.uint8)
    picture, outside = target.copy(), np.ones((4, 4), bool)
    picture[:2], outside[:2] = 200, False
    assert outside_error(target, picture, outside) == 0
    assert outside_error(target, picture, np.ones((4, 4), bool)) == 100
    with pytest.raises(ValueError, match="no outside"):
        outside_error(target, picture, np.zeros((4, 4), bool))


def test_pictures_differ_only_inside():
    """Bug: a mask that forgets shadows, so that a perfect edit has an error."""
    edits, drawn = held_edits(64, (64, 64))
    for k, edit in enumerate(edits):
        changed = (drawn.source[k] != drawn.target[k]).any(-1)
        assert not (changed & drawn.outside[k]).any(), (k, edit.kind)
        assert changed.any()


def test_words_tell_no_more_of_a_place_than_its_third():
    """Bugs: a thing in the right third that counts as missing; one in another third, or the old one left, that counts;
    a stricter rule for edits that keep their place."""
    cat, ball = Thing("cat", "red", 0.2, 0.9, 0.3), Thing("ball", "blue", 0.5, 0.9, 0.2)
    added = replace(ball, x=0.72)
    edit = Edit("add", Scene((cat,)), Scene((cat, added)), "", ())
    for x, done in ((0.95, True), (0.72, True), (0.4, False)):
        assert worded_success(edit, Scene((cat, replace(added, x=x)))) == done
        assert not done or success(edit, Scene((cat, replace(added, x=x)))) == (x == 0.72)
    assert not worded_success(edit, Scene((cat,)))
    moved = Edit("move", Scene((cat, ball)), Scene((replace(cat, x=0.9), ball)), "", ())
    assert worded_success(moved, Scene((replace(cat, x=0.7), ball)))
    assert not worded_success(moved, Scene((cat, replace(cat, x=0.7), ball))), "the old one is still there"
    mask = np.ones((4, 20), bool)
    columns = worded_outside(edit, mask).all(0)
    assert columns[:10].all() and not columns[11:].any()
    assert worded_outside(replace(edit, kind="remove"), mask).all() and mask.all()
    # The cat left of the ball, and right of it
    there, other = (Scene((replace(cat, x=x), replace(ball, x=0.2))) for x in (0.1, 0.3))
    assert there.content != other.content and worded_content(there) == worded_content(other)
    assert worded_content(there) != worded_content(Scene((replace(cat, x=0.1), ball)))


def test_what_was_not_edited_has_no_error_outside(monkeypatch):
    """Bug: a model that leaves pictures as they are is praised for what it has not touched."""
    edits, drawn = held_edits(6, (32, 32))
    monkeypatch.setattr(editing, "read_scenes", lambda reader, pictures: [edit.source for edit in edits])
    pictures = [np.full_like(drawn.source[0], 255), *drawn.source[1:]]
    told, all_of_them = (judge_edits(edits, drawn, pictures, None, True, made) for made in ([True] + 5 * [False], None))
    assert told["outside_error"]["mean"] > 2 * all_of_them["outside_error"]["mean"] > 0
    assert told["success"] == all_of_them["success"] and told["right"]["mean"] == 0
    assert "outside_error" not in judge_edits(edits, drawn, pictures, None, True, 6 * [False])
