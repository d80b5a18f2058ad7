"""Edits of scenes: an instruction, the scene before and the scene after, in which nothing else has changed.

An edit changes the `Scene`, not the picture, so the target is exact: same style, light and all the rest.
Source and target belong to one split, so no held-out combination and no content of another split slips in.
"""

from dataclasses import dataclass, replace

import numpy as np

from . import language
from . import scene as world
from .language import (
    EDIT_TEMPLATES,
    PLACE_PHRASES,
    Choices,
    is_place_clear,
    noun_phrase,
    refer,
    references,
    with_article,
)
from .scene import Scene, Thing, is_clear, most_things, sample_scene, sample_thing, split_of

EDITS = ("recolour", "remove", "add", "replace", "move", "pose", "sky", "ground")
_NEEDS_ROOM = ("remove", "add")  # for a second thing
_TRIES = 6  # changes tried on one scene before the next is taken
_CHAIN_TRIES = 500  # for each edit of a chain,
_KIND_TRIES = 20  # so many of them of one kind: one after the other would favour the easy kinds
_STRIDE = 7_919_003  # to the next scene; prime, so that the walk visits the whole split

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Edit:
    """kind: one of `EDITS`. changed: boxes (left, top, right, bottom, fractions) of what changes, before and after,
    shadows included; the whole picture for a new sky, since its light falls on everything."""

    kind: str
    source: Scene
    target: Scene
    instruction: str
    changed: tuple[Box, ...]


def sample_edit(
    index: int, split: str = "train", mix: str = "narrow", size: tuple[int, int] = (64, 64), kind: str | None = None
) -> Edit:
    """Edit number `index` of a split: always the same for the same arguments; arguments as in `sample_scene`.

    kind: one of `EDITS`, or None for any that the size has room for, in equal shares.
    Raises ValueError for an unknown kind, or one that a picture too narrow for two things cannot show.
    """
    possible = _possible(size)
    if kind is not None and kind not in possible:
        raise ValueError(f"sample_edit: one of {', '.join(possible)} expected for {size[0]}x{size[1]} px, got {kind!r}")
    source = sample_scene(index, split, mix, size)  # first of all: it checks the arguments
    start, stop = world.SEED_RANGES[split]
    choose = Choices(np.random.default_rng([start + index, world.MIXES.index(mix), 1]))
    kind = kind or choose.pick(possible)  # drawn once: retries must not favour the easy kinds
    while True:
        for _ in range(_TRIES):
            edit = _CHANGES[kind](source, choose)
            if edit is not None and is_clear(edit.target) and split_of(edit.target) == split:
                return edit
        index = (index + _STRIDE) % (stop - start)
        source = sample_scene(index, split, mix, size)


def sample_chain(
    index: int, length: int, split: str = "train", mix: str = "narrow", size: tuple[int, int] = (64, 64)
) -> tuple[Edit, ...]:
    """Edits one after the other, each of what the one before has made; the first is `sample_edit(index, …)`. All that
    they show is of the split; where a scene has no such neighbour left, the chain starts from another one."""
    edits = [sample_edit(index, split, mix, size)]
    start, stop = world.SEED_RANGES[split]
    choose, kind, left = Choices(np.random.default_rng([start + index, world.MIXES.index(mix), 2])), "", 0
    for _ in range(_CHAIN_TRIES * length):
        if len(edits) >= length:
            return tuple(edits[:length])
        if left == 0:
            kind, left = choose.pick(_possible(size)), _KIND_TRIES
        edit, left = _CHANGES[kind](edits[-1].target, choose), left - 1
        if edit is not None and is_clear(edit.target) and split_of(edit.target) == split:
            edits.append(edit)
            left = 0
    return sample_chain((index + _STRIDE) % (stop - start), length, split, mix, size)


def _possible(size: tuple[int, int]) -> list[str]:
    return [name for name in EDITS if most_things(*size) > 1 or name not in _NEEDS_ROOM]


def _edit(
    templates: str, source: Scene, choose: Choices, before: Thing | None, after: Thing | None, **words: str
) -> Edit | None:
    """One thing changed, removed (no `after`) or added (no `before`); None if `before` cannot be named. It is named by
    any phrase that fits it alone, also a longer one than it needs.

    templates: a key of `EDIT_TEMPLATES`, whose first word is the kind of edit.
    """
    names = list(references(source, before)) if before else [""]
    if not names:
        return None
    [stream] = choose.rng.spawn(1)  # of its own, so that what happens does not hang on what it is called
    name = Choices(stream).pick(names)
    things = [after if thing is before else thing for thing in source.things] + [after] * (before is None)
    target = replace(source, things=tuple(thing for thing in things if thing))
    instruction = choose.pick(EDIT_TEMPLATES[templates]).format(thing=name, **words)
    changed = tuple(_with_shadow(source, thing) for thing in (before, after) if thing)
    return Edit(templates.split()[0], source, target, instruction, changed)


def _with_shadow(scene: Scene, thing: Thing) -> Box:
    (l1, t1, r1, b1), (l2, t2, r2, b2) = scene.box(thing), scene.shadow(thing)
    return min(l1, l2), min(t1, t2), max(r1, r2), max(b1, b2)


def _other(choose: Choices, options: tuple[str, ...], old: str) -> str:
    return choose.pick(option for option in options if option != old)


def _recolour(source: Scene, choose: Choices) -> Edit | None:
    old = choose.pick(source.things)
    colour = _other(choose, world.COLOURS, old.colour)
    templates = "recolour person" if old.pose else "recolour"
    words = {"colour": colour, "shirt": with_article(colour) + " shirt"}
    return _edit(templates, source, choose, old, replace(old, colour=colour), **words)


def _remove(source: Scene, choose: Choices) -> Edit | None:
    if len(source.things) == 1:
        return None  # an empty scene is none
    return _edit("remove", source, choose, choose.pick(source.things), None)


def _new_thing(source: Scene, choose: Choices, kinds: tuple[str, ...], count: int) -> Thing:
    kind, colour = choose.pick(kinds), choose.pick(world.COLOURS)
    return sample_thing(choose.rng, kind, colour, source, zoom=1.0, count=count)


def _add(source: Scene, choose: Choices) -> Edit | None:
    count = len(source.things) + 1
    new = _new_thing(source, choose, world.KINDS, count)
    if count > most_things(source.width, source.height) or not is_place_clear(new):
        return None
    words = {"new": noun_phrase(new, ("pose", "colour")), "place": PLACE_PHRASES[new.place]}
    edit = _edit("add", source, choose, None, new, **words)
    return edit if edit and refer(edit.target, new) else None  # no second red car on the right


def _replace(source: Scene, choose: Choices) -> Edit | None:
    old = choose.pick(source.things)
    kinds = tuple(kind for kind in world.KINDS if kind != old.kind)
    new = replace(_new_thing(source, choose, kinds, len(source.things)), x=old.x, y=old.y)
    return _edit("replace", source, choose, old, new, new=noun_phrase(new, ("pose", "colour")))


def _move(source: Scene, choose: Choices) -> Edit | None:
    old = choose.pick(source.things)
    third = world.PLACES.index(_other(choose, world.PLACES, old.place))
    new = replace(old, x=round((third + float(choose.rng.uniform(0.15, 0.85))) / 3, 3))
    return _edit("move", source, choose, old, new, place=PLACE_PHRASES[new.place], place_name=new.place)


def _pose(source: Scene, choose: Choices) -> Edit | None:
    people = [thing for thing in source.things if thing.pose]
    if not people:
        return None
    old = choose.pick(people)
    pose = _other(choose, world.POSES, old.pose)
    height, old_height = world.SHAPE[pose][0], world.SHAPE[old.pose][0]
    size = max(world.SMALLEST_PERSON, round(old.size * height / old_height, 3))
    return _edit("pose", source, choose, old, replace(old, pose=pose, size=size), verb=language.VERBS[pose][0])


def _sky(source: Scene, choose: Choices) -> Edit:
    target = replace(source, sky=_other(choose, world.SKIES, source.sky))
    instruction = choose.pick(EDIT_TEMPLATES["sky"]).format(sky=target.sky)
    return Edit("sky", source, target, instruction, ((0.0, 0.0, 1.0, 1.0),))


def _ground(source: Scene, choose: Choices) -> Edit:
    target = replace(source, ground=_other(choose, world.GROUNDS, source.ground))
    ground = language.GROUND_NAMES[target.ground]
    instruction = choose.pick(EDIT_TEMPLATES["ground"]).format(ground=ground, old_ground=source.ground)
    return Edit("ground", source, target, instruction, ((0.0, source.horizon, 1.0, 1.0),))


_CHANGES = dict(zip(EDITS, (_recolour, _remove, _add, _replace, _move, _pose, _sky, _ground), strict=True))
