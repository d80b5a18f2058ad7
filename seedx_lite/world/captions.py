"""Reads captions back: what a text says of a scene, to be compared with the scene."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .language import GROUND_NAMES, PLACE_PHRASES, SKY_PHRASES, VERBS
from .scene import COLOURS, KINDS, PLACES


@dataclass(frozen=True)
class Statement:
    """What a caption says, with None for what it leaves open; things are (place, kind, colour, pose)."""

    sky: str | None
    ground: str | None
    things: tuple[tuple, ...]

    @property
    def content(self) -> tuple:
        """As `Scene.content`."""
        return (self.sky, self.ground, *self.things)


def _any(options: Iterable[str]) -> str:
    return f"({'|'.join(options)})"


def _inverse(phrases: dict[str, str]) -> dict[str, str]:
    return {phrase: name for name, phrase in phrases.items()}


_PLACE_OF, _GROUND_OF, _SKY_OF = map(_inverse, (PLACE_PHRASES, GROUND_NAMES, SKY_PHRASES))
_POSE_OF = {form: pose for pose, (_, verb) in VERBS.items() for form in (pose, verb)}
_THING = re.compile(
    rf"(?:{_any(_PLACE_OF)} )?an? (?:{_any(COLOURS)} )?{_any(KINDS)}"
    rf"(?: in an? {_any(COLOURS)} shirt)?(?: (?:is )?{_any(_POSE_OF)})?(?: {_any(_PLACE_OF)})?"
)
_GROUND = re.compile(rf"on {_any(_GROUND_OF)}")
_SKY = re.compile(_any(_SKY_OF))


def read_caption(text: str) -> Statement:
    """The statement behind any caption of this grammar; relations such as `beside` are passed over. Raises ValueError
    naming the words that it cannot read."""
    things = []
    for before, colour, kind, shirt, verb, after in _THING.findall(text):
        pose = _POSE_OF.get(verb) if kind == "person" else ""
        things.append((_PLACE_OF.get(before or after), kind, colour or shirt or None, pose))
    if all(place for place, *_ in things):
        things.sort(key=lambda thing: PLACES.index(thing[0]))
    left = _THING.sub(" ", text)
    grounds, skies = _GROUND.findall(left), _SKY.findall(left)
    left = re.sub(r"\b(beside|to the (left|right) of|and)\b|,", " ", _SKY.sub(" ", _GROUND.sub(" ", left))).split()
    if left or not things or len(grounds) > 1 or len(skies) > 1:
        raise ValueError(f"not a caption of this world: {text!r}; not understood: {' '.join(left) or 'the whole'}")
    return Statement(_SKY_OF.get("".join(skies)), _GROUND_OF.get("".join(grounds)), tuple(things))
