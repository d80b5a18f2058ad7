"""Reading a picture back into a `Scene`, and comparing that with the scene it should show.

The reader errs, too. What it reports on real renders, on combinations of kind and colour that no model of the book is
shown, and on VAE round trips is stored in its record, by the same rules, and printed beside what it says of models.

A match: the same kind, centres within `MATCH` of the width, one to one (the most matches, then the closest). Of a
picture that was drawn from words, which tell a place as left, middle or right, no more can be asked: there a match is
the same kind in the same third of the width.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from seedx_lite.models.autoencoder import to_tensor
from seedx_lite.models.scene_reader import CELL, SceneReader
from seedx_lite.world.scene import FACINGS, Scene, Thing, most_things
from .statistics import bootstrap

MATCH = 0.1  # of the width
THRESHOLD = 0.4  # least score of a centre that counts as a thing
GAP = 1.5  # cells between two centres, at least; of closer ones the surer stays
ITEMS = ("single_object", "two_objects", "counting", "colours", "position", "attribution")  # as in GenEval


@dataclass(frozen=True)
class Comparison:
    """What a picture shows of a scene. Counts: `true` and `read` things, `matched` ones, of these the right `colours`,
    among `people` the right `poses`, and among `sided` things (all matched ones, but none of a picture that was drawn
    from words, which do not tell it) the right `facings`. distance: of the centres of all matched things together, in
    widths.
    items: each of `ITEMS` that the scene asks for, and whether the picture shows it."""

    true: int
    read: int
    matched: int
    colours: int
    people: int
    poses: int
    sided: int
    facings: int
    distance: float
    sky: bool
    ground: bool
    items: dict[str, bool]

    @property
    def f1(self) -> float:
        """Scene F1: 2 · matched / (true + read)."""
        return 2 * self.matched / max(1, self.true + self.read)


@torch.no_grad()
def read_scenes(reader: SceneReader, pictures: Sequence[np.ndarray], threshold: float = THRESHOLD) -> list[Scene]:
    """What the reader sees in uint8 pictures [H, W, 3], all of one size with sides of 8·n px.

    `look` and `style`, which no caption tells, stay at their defaults. Raises ValueError for other pictures.
    """
    return [scene for part in _outputs(reader, pictures) for scene in decode(part, reader.config, threshold)]


def read_picture(reader: SceneReader, image: Image.Image, side: int) -> Scene:
    """What the reader sees in a picture of any size: the shorter side is scaled to `side` px, as in the pictures of its
    training, and both to multiples of 8. Raises ValueError for an empty or a very elongated picture."""
    shortest, longest = min(image.size), max(image.size)
    if not shortest or longest > 16 * shortest:
        size = f"{image.width}x{image.height} px"
        raise ValueError(
            f"a picture of {size}: both sides at least 1 px, and none more than 16 times the other expected"
        )
    width, height = (8 * max(1, round(length * side / shortest / 8)) for length in image.size)
    pixels = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    return read_scenes(reader, [np.asarray(pixels)])[0]


@torch.no_grad()
def picture_features(reader: SceneReader, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """One unit vector for each picture, from the last layer of the reader: float32 [K, 2·D]. For measures of diversity;
    pictures are as for `read_scenes`."""
    parts = _outputs(reader, pictures, lambda images: reader.features(images)[1])
    return F.normalize(torch.cat(list(parts)).float(), dim=1).cpu().numpy()


def _outputs(reader: SceneReader, pictures: Sequence[np.ndarray], function: Callable | None = None):
    shapes = {(picture.shape, str(picture.dtype)) for picture in pictures}
    if len(shapes) != 1 or next(iter(shapes))[1] != "uint8":
        found = ", ".join(f"{dtype} {list(shape)}" for shape, dtype in sorted(shapes)) or "none"
        raise ValueError(f"pictures to read: uint8 [H, W, 3] of one size expected, got {found}")
    for start in range(0, len(pictures), 64):
        yield (function or reader)(to_tensor(np.stack(pictures[start : start + 64])).to(reader.device))


def decode(read: dict[str, torch.Tensor], answers: dict[str, Any], threshold: float = THRESHOLD) -> list[Scene]:
    """Outputs of `SceneReader` for B pictures → B scenes. answers: the reader's configuration, with all names."""
    scores, kinds = read["centre"].sigmoid().max(1)  # [B, h, w]
    chosen = {name: read[name].argmax(1) for name in ("colour", "pose", "facing")}
    rows, columns = scores.shape[1:]
    width, height = columns * CELL, rows * CELL
    scenes = []
    for b in range(len(scores)):
        found: list[tuple[float, float]] = []
        things = []
        for index in scores[b].flatten().argsort(descending=True).tolist():
            row, column = divmod(index, columns)
            if scores[b, row, column] < threshold or len(things) == most_things(width, height) + 2:
                break
            offset, size = read["offset"][b, :, row, column].tolist(), read["size"][b, :, row, column].exp().tolist()
            x, y = column + 0.5 + offset[0], row + 0.5 + offset[1]
            if any(np.hypot(x - other[0], y - other[1]) < GAP for other in found):
                continue
            found.append((x, y))
            kind = answers["kinds"][kinds[b, row, column]]
            said = {name: int(values[b, row, column]) for name, values in chosen.items()}
            thing = Thing(
                kind,
                answers["colours"][said["colour"]],
                x / columns,
                (y + size[1] / 2) / rows,
                min(4.0, max(0.01, size[1] * CELL / min(width, height))),
                FACINGS[said["facing"]],
                answers["poses"][said["pose"]] if kind == "person" else None,
            )
            things.append(thing)
        sky, ground = answers["skies"][read["sky"][b].argmax()], answers["grounds"][read["ground"][b].argmax()]
        scenes.append(Scene(tuple(things), sky, ground, *read["level"][b].tolist(), width, height))
    return scenes


def match(scene: Scene, read: Scene, by_place: bool = False) -> list[tuple[int, int, float]]:
    """Pairs of a thing of the scene and one that was read, with the distance of their centres in widths.

    by_place: the same third of the width is near enough, as for a picture that was drawn from a caption.
    """
    if not scene.things or not read.things:
        return []
    here, there = (np.array([centre(side, thing) for thing in side.things]) for side in (scene, read))
    distance = np.linalg.norm(here[:, None] - there, axis=2)
    same = np.array([[one.kind == other.kind for other in read.things] for one in scene.things])
    near = np.array([[one.place == other.place for other in read.things] for one in scene.things])
    allowed = same & (near if by_place else distance <= MATCH)
    pairs = zip(*linear_sum_assignment(np.where(allowed, distance, 1e3)), strict=True)
    return [(int(i), int(j), float(distance[i, j])) for i, j in pairs if allowed[i, j]]


def centre(scene: Scene, thing: Thing) -> tuple[float, float]:
    """The middle of its box, both in widths of the picture."""
    left, top, right, bottom = scene.box(thing)
    return (left + right) / 2, (top + bottom) / 2 * scene.height / scene.width


def compare(scene: Scene, read: Scene, by_place: bool = False) -> Comparison:
    """Compares what was read in a picture with the scene that it should show; `by_place` as in `match`."""
    found = match(scene, read, by_place)
    pairs = [(scene.things[i], read.things[j]) for i, j, _ in found]
    people = [(one, other) for one, other in pairs if one.pose]
    sided = [] if by_place else pairs
    return Comparison(
        true=len(scene.things),
        read=len(read.things),
        matched=len(pairs),
        colours=sum(one.colour == other.colour for one, other in pairs),
        people=len(people),
        poses=sum(one.pose == other.pose for one, other in people),
        sided=len(sided),
        facings=sum(one.facing == other.facing for one, other in sided),
        distance=sum(distance for *_, distance in found),
        sky=scene.sky == read.sky,
        ground=scene.ground == read.ground,
        items=_items(scene, read),
    )


def compare_all(scenes: Sequence[Scene], readings: Sequence[Scene], by_place: bool = False) -> list[Comparison]:
    """`compare` of each scene with its reading. Raises ValueError if there are not as many."""
    return [compare(scene, read, by_place) for scene, read in zip(scenes, readings, strict=True)]


def _items(scene: Scene, read: Scene) -> dict[str, bool]:
    """Items like those of GenEval (arXiv 2310.11513), asked wherever the scene has what they ask for.

    A single object, and its colour, of scenes with one thing; two objects of scenes with two kinds; the number of
    things of each kind; left, middle or right of each; of scenes with two things or more, the colour of each kind.
    """

    def have(*names: str) -> tuple[Counter, Counter]:
        told = [Counter(tuple(getattr(t, name) for name in names) for t in side.things) for side in (scene, read)]
        return told[0], told[1]

    kinds, read_kinds = have("kind")
    places, read_places = have("kind", "place")
    colours, read_colours = have("kind", "colour")
    items = {"counting": kinds == read_kinds, "position": places <= read_places}
    if len(scene.things) == 1:
        items |= {"single_object": kinds <= read_kinds, "colours": colours <= read_colours}
    else:
        items |= {"attribution": colours <= read_colours}
        items |= {"two_objects": kinds <= read_kinds} if len(kinds) == 2 else {}
    return {name: items[name] for name in ITEMS if name in items}


def summarise(comparisons: Sequence[Comparison], seed: int = 0) -> dict[str, dict[str, float]]:
    """Means over scenes with 95 % bootstrap intervals.

    `f1`, `sky`, `ground`, `background` (both right), items: shares of scenes. `colour`, `facing` (left or right; half
    of them are right by chance), and among people `pose`: shares of matched things. `position_error`: of matched
    things, in widths. `coloured_f1`: F1 that counts only things whose colour is right, too. What the scenes never ask
    for is left out.
    """
    parts = {
        "f1": [(c.f1, 1) for c in comparisons],
        "colour": [(c.colours, c.matched) for c in comparisons],
        "pose": [(c.poses, c.people) for c in comparisons],
        "facing": [(c.facings, c.sided) for c in comparisons],
        "position_error": [(c.distance, c.matched) for c in comparisons],
        "coloured_f1": [(2 * c.colours / max(1, c.true + c.read), 1) for c in comparisons],
        "sky": [(c.sky, 1) for c in comparisons],
        "ground": [(c.ground, 1) for c in comparisons],
        "background": [(c.sky and c.ground, 1) for c in comparisons],
    }
    for name in ITEMS:
        parts[name] = [(c.items.get(name, 0), name in c.items) for c in comparisons]
    return {name: bootstrap(values, seed=seed) for name, values in parts.items() if sum(v[1] for v in values)}


def disagreement(first: Sequence[Scene], second: Sequence[Scene]) -> dict[str, float]:
    """How often two readings of the same pictures differ: shares of `things` that have no match, of `colour` and `pose`
    among those that have one, of `background`; and of `pictures` with any such difference."""
    pairs = compare_all(first, second)
    things, matched = sum(c.true + c.read for c in pairs), sum(c.matched for c in pairs)
    return {
        "things": 1 - 2 * matched / max(1, things),
        "colour": 1 - sum(c.colours for c in pairs) / max(1, matched),
        "pose": 1 - sum(c.poses for c in pairs) / max(1, sum(c.people for c in pairs)),
        "background": float(np.mean([not (c.sky and c.ground) for c in pairs])),
        "pictures": float(np.mean([differs(c) for c in pairs])),
    }


def differs(c: Comparison) -> bool:
    """Whether anything that a full caption tells of a scene was read otherwise."""
    return not (c.true == c.read == c.matched == c.colours and c.people == c.poses and c.sky and c.ground)
