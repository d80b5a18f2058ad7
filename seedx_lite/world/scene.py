"""Scenes of the toy world: what stands where, before anything is drawn.

A `Scene` is the whole truth about a picture: drawing, words and edits start from it, so whatever a model reads or draws
can be checked against it. Units: `x` and `y` are fractions of the picture's width and height, from the top left corner;
a thing's `size` is its height as a fraction of the *shorter* side, so that it keeps its look at any aspect ratio.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Self

import numpy as np

KINDS = ("person", "cat", "dog", "car", "house", "tree", "ball", "boat")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
POSES = ("standing", "waving", "sitting", "running", "cheering")
SKIES = ("day", "sunset", "night")
GROUNDS = ("grass", "sand", "snow", "street")
PLACES = ("left", "middle", "right")
FACINGS = ("left", "right")
MIXES = ("narrow", "broad")

SHAPE = {  # height as a fraction of the shorter side, and width / height, of each kind and of people in each pose
    "cat": (0.30, 1.10), "dog": (0.32, 1.18), "car": (0.235, 1.75), "house": (0.44, 0.88),
    "tree": (0.52, 0.64), "ball": (0.22, 1.00), "boat": (0.38, 0.98),
    "standing": (0.50, 0.46), "waving": (0.52, 0.56), "sitting": (0.45, 0.66), "running": (0.49, 0.74),
    "cheering": (0.54, 0.62),
}  # fmt: skip
SHADOW_LENGTH = {"day": 0.20, "sunset": 0.55, "night": 0.15}  # in heights of the thing, for light from the far side
SMALLEST_PERSON = 0.42  # 27 px of 64: limbs stay wide enough to be seen and measured
MOST_COVERED = 0.22  # of a thing's box by the boxes before it; masks then keep 70 % visible
MAX_SIDE = 4096  # px; larger pictures are refused

# Combinations that no training scene shows, one for each kind: they measure composition.
HELD_OUT = frozenset(zip(KINDS, ("orange", "purple", "pink", "green", "blue", "red", "white", "yellow"), strict=True))

# A split owns a range of seeds *and* a share of all contents, so neither a seed nor a caption can leak.
SEED_RANGES = {
    "train": (0, 100_000_000),
    "validation": (100_000_000, 110_000_000),
    "test": (110_000_000, 120_000_000),
    "composition": (120_000_000, 130_000_000),
}
SPLITS = tuple(SEED_RANGES)


@dataclass(frozen=True)
class Style:
    """How a scene is drawn; the default is the plain look of the narrow mix. `seed` decides clouds, stars, hills and
    tufts, and with `Thing.look` each thing's shade."""

    palette: float = 0.25  # jitter of hue and lightness of every colour, 0 to 1
    outline: float = 0.0  # width of a dark contour in px
    texture: float = 1.0  # strength of ground texture, 0 to 2
    blur: float = 0.0  # Gaussian radius in px
    grain: float = 0.0  # standard deviation of film grain in grey levels
    seed: int = 0


@dataclass(frozen=True)
class Thing:
    """One thing. `x` is its middle, `y` its foot; `pose` is None for everything but people. `look` seeds what no
    caption tells: its shade, skin, hair, roof; it stays with the thing through every edit."""

    kind: str
    colour: str
    x: float
    y: float
    size: float
    facing: str = "right"
    pose: str | None = None
    look: int = 0

    def __post_init__(self):
        _one_of("kind", self.kind, KINDS)
        _one_of("colour", self.colour, COLOURS)
        _one_of("facing", self.facing, FACINGS)
        if self.kind == "person":
            _one_of("pose", self.pose, POSES)
        elif self.pose is not None:
            raise ValueError(f"Thing.pose: only people have one, but a {self.kind} got {self.pose!r}; use None")
        if not (math.isfinite(self.x) and math.isfinite(self.y) and 0 < self.size <= 4):
            raise ValueError(f"Thing: x, y finite and 0 < size <= 4 expected, got {self.x}, {self.y}, {self.size}")

    @property
    def aspect(self) -> float:
        """Width over height."""
        return SHAPE[self.pose or self.kind][1]

    @property
    def place(self) -> str:
        """`left`, `middle` or `right`: the third of the picture that holds its middle."""
        return PLACES[min(2, max(0, int(self.x * 3)))]

    @property
    def content(self) -> tuple:
        """What a full caption says of it."""
        return (self.place, self.kind, self.colour, self.pose or "")


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. `light` is where the sun or moon stands, 0 (left) to 1; `horizon` is a fraction of
    the height; `width` and `height` are px."""

    things: tuple[Thing, ...]
    sky: str = "day"
    ground: str = "grass"
    light: float = 0.7
    horizon: float = 0.55
    width: int = 64
    height: int = 64
    style: Style = field(default_factory=Style)

    def __post_init__(self):
        _one_of("sky", self.sky, SKIES)
        _one_of("ground", self.ground, GROUNDS)
        for name, side in (("width", self.width), ("height", self.height)):
            if not 16 <= side <= MAX_SIDE:
                raise ValueError(f"Scene.{name}: 16 to {MAX_SIDE} px expected, got {side}")

    @property
    def short(self) -> int:
        """The shorter side in px, the unit of every `size`."""
        return min(self.width, self.height)

    @property
    def by_depth(self) -> tuple[int, ...]:
        """Indices of the things from back to front."""
        return tuple(sorted(range(len(self.things)), key=lambda i: (self.things[i].y, self.things[i].x)))

    @property
    def from_left(self) -> tuple[Thing, ...]:
        """The things in reading order."""
        return tuple(sorted(self.things, key=lambda thing: thing.x))

    @property
    def content(self) -> tuple:
        """What a full caption says, in reading order: the key by which splits are kept apart."""
        return (self.sky, self.ground, *(thing.content for thing in self.from_left))

    def box(self, thing: Thing) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of a thing as fractions of width and height; drawings fill it to about a pixel."""
        height, foot = thing.size * self.short, thing.y * self.height
        half = height * thing.aspect / 2 / self.width
        return thing.x - half, (foot - height) / self.height, thing.x + half, foot / self.height

    def shadow(self, thing: Thing) -> tuple[float, float, float, float]:
        """The same for its shadow: on the ground at its foot, stretched away from the light and long at sunset."""
        left, _, right, foot = self.box(thing)
        length = thing.size * self.short
        away = (thing.x - self.light) * SHADOW_LENGTH[self.sky] * length / self.width
        thick = (0.055 * length + 0.6) / self.height
        return min(left, left + away), foot - 1.6 * thick, max(right, right + away), foot + thick

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """The inverse of `to_dict`. Raises ValueError for unknown or missing keys and values."""
        try:
            things = tuple(Thing(**thing) for thing in data["things"])
            return cls(**{**data, "things": things, "style": Style(**data.get("style", {}))})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a scene: {error}; expected the keys that Scene.to_dict writes") from error


def _one_of(name: str, value, allowed) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: one of {', '.join(map(str, allowed))} expected, got {value!r}")


def split_of(scene: Scene) -> str:
    """The split that owns this scene's content: `composition` if it shows a held-out combination, else `train`,
    `validation` or `test` in the shares 80 : 10 : 10 by a hash of `Scene.content`."""
    if any((thing.kind, thing.colour) in HELD_OUT for thing in scene.things):
        return "composition"
    bucket = int.from_bytes(hashlib.blake2s(repr(scene.content).encode(), digest_size=4).digest(), "big") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def covered(scene: Scene, index: int) -> float:
    """The share of a thing's box that the frame or the boxes of nearer things cut off, 0 to 1."""
    left, top, right, bottom = scene.box(scene.things[index])
    area = (right - left) * (bottom - top)

    def shared(l2: float, t2: float, r2: float, b2: float) -> float:
        return max(0.0, min(right, r2) - max(left, l2)) * max(0.0, min(bottom, b2) - max(top, t2))

    order = scene.by_depth
    nearer = [scene.box(scene.things[i]) for i in order[order.index(index) + 1 :]]
    return (area - shared(0, 0, 1, 1) + sum(shared(*box) for box in nearer)) / area


def is_clear(scene: Scene) -> bool:
    """Whether every thing can be seen well enough: little of its box covered, its foot below the horizon."""
    below = all(scene.horizon + 0.03 <= thing.y <= 1 for thing in scene.things)
    return below and all(covered(scene, i) <= MOST_COVERED for i in range(len(scene.things)))


def most_things(width: int, height: int) -> int:
    """How many things fit: 3 in a square, more in a wide picture (at most 8), fewer in a tall one. Raises ValueError
    for sides that no scene may have."""
    Scene((), width=width, height=height)
    return max(1, min(8, round(3 * width / height) if width >= height else int(3 * width / height + 0.5)))


def sample_scene(
    index: int, split: str = "train", mix: str = "narrow", size: tuple[int, int] = (64, 64), things: int | None = None
) -> Scene:
    """Scene number `index` of a split: always the same for the same arguments.

    mix: `narrow` is one clean look; `broad` varies style and camera distance. size: (width, height) in px. things: how
    many, or None for one to `most_things(*size)`. Raises ValueError for an unknown split or mix, an index outside the
    split, or a number of things that cannot fit.
    """
    _one_of("split", split, SPLITS)
    _one_of("mix", mix, MIXES)
    start, stop = SEED_RANGES[split]
    if not 0 <= index < stop - start:
        raise ValueError(f"sample_scene: index 0 to {stop - start - 1} expected in split {split!r}, got {index}")
    room = most_things(*size)
    if things is not None and not 1 <= things <= room:
        raise ValueError(f"sample_scene: 1 to {room} things fit {size[0]}x{size[1]} px, got {things}")
    rng = np.random.default_rng([start + index, MIXES.index(mix)])
    while True:  # one draw in ten or better is accepted in every split
        scene = _draw_scene(rng, split, mix, size, things or int(rng.integers(1, room + 1)))
        if scene is not None and split_of(scene) == split:
            return scene


def _draw_scene(rng, split: str, mix: str, size: tuple[int, int], count: int) -> Scene | None:
    """One attempt; None when the things do not fit beside each other."""
    broad = mix == "broad"
    horizon = _between(rng, 0.48, 0.66) if broad else _between(rng, 0.52, 0.60)
    zoom = float(rng.uniform(0.9, 1.2) if broad else rng.uniform(0.95, 1.05))
    sky, ground, light = str(rng.choice(SKIES)), str(rng.choice(GROUNDS)), _between(rng, 0.08, 0.92)
    scene = Scene((), sky, ground, light, horizon, *size, _draw_style(rng, broad))
    kinds, colours = rng.choice(KINDS, count), rng.choice(COLOURS, count)
    if split == "composition":
        kinds[0], colours[0] = sorted(HELD_OUT)[rng.integers(len(HELD_OUT))]
    return place_things(rng, scene, kinds, colours, zoom)


def place_things(rng, scene: Scene, kinds: Iterable[str], colours: Iterable[str], zoom: float) -> Scene | None:
    """The scene with a thing of each kind and colour somewhere on its ground; None when they find no room."""
    pairs = [(str(kind), str(colour)) for kind, colour in zip(kinds, colours, strict=True)]
    for kind, colour in pairs:
        for _ in range(12):
            thing = sample_thing(rng, kind, colour, scene, zoom, len(pairs))
            attempt = replace(scene, things=(*scene.things, thing))
            if is_clear(attempt):
                scene = attempt
                break
        else:
            return None
    return replace(scene, things=scene.from_left)  # the order of a scene must not tell how it was drawn


def _between(rng, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 3)


def sample_thing(rng, kind: str, colour: str, scene: Scene, zoom: float, count: int) -> Thing:
    """A thing of this kind and colour somewhere on the scene's ground, sized for a picture of `count` things."""
    pose = str(rng.choice(POSES)) if kind == "person" else None
    depth = float(rng.uniform(0.15, 1.0))  # 0 at the horizon, 1 at the lower edge
    size = SHAPE[pose or kind][0] * zoom * float(rng.uniform(0.95, 1.05)) * (0.88 + 0.2 * depth)
    size *= 0.92 if count > 2 else 1.08 if count == 1 else 1.0
    if pose:
        size = max(size, SMALLEST_PERSON)
    x, y = _between(rng, 0.06, 0.94), scene.horizon + (0.97 - scene.horizon) * (0.25 + 0.75 * depth)
    facing, look = str(rng.choice(FACINGS)), int(rng.integers(1 << 16))
    return Thing(kind, colour, x, round(y, 3), round(size, 3), facing, pose, look)


def _draw_style(rng, broad: bool) -> Style:
    seed = int(rng.integers(1 << 31))
    if not broad:
        return Style(seed=seed)
    return Style(
        palette=_between(rng, 0.2, 1.0),
        outline=_between(rng, 0.4, 1.0) if rng.random() < 0.3 else 0.0,
        texture=_between(rng, 0.0, 2.0),
        blur=_between(rng, 0.3, 0.8) if rng.random() < 0.25 else 0.0,
        grain=_between(rng, 1.0, 5.0) if rng.random() < 0.3 else 0.0,
        seed=seed,
    )
