"""What counts as a successful edit, on readings whose verdict is known."""

from dataclasses import replace

import numpy as np
import pytest

from seedx_lite.evaluation.editing import held_edits, outside_error, success
from seedx_lite.world.edits import EDITS, sample_edit
from seedx_lite.world.scene import COLOURS


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
