"""Drawing: from a `Scene` to a small photograph and to the truth about every pixel of it.

Everything is painted at `supersample` times the size with Pillow and scaled down, which gives soft edges. The same
strokes paint the label maps, so masks cannot drift from the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .brush import PARTS, Brush, Colour, jittered, shade
from .scene import Scene
from .things import PAINTERS, RGB

TINT = {"day": (255, 255, 255), "sunset": (255, 226, 200), "night": (190, 194, 226)}
SKY = {  # colours from the top to the horizon
    "day": ((88, 158, 232), (150, 202, 244), (214, 234, 246)),
    "sunset": ((98, 78, 150), (226, 122, 104), (255, 206, 128)),
    "night": ((10, 14, 42), (26, 34, 78), (60, 72, 122)),
}
HILLS = {"day": (128, 166, 172), "sunset": (140, 86, 112), "night": (26, 32, 66)}
GROUND = {  # colours at the horizon and at the lower edge
    "grass": ((150, 186, 96), (98, 152, 64)),
    "sand": ((238, 216, 168), (218, 186, 128)),
    "snow": ((246, 250, 254), (214, 226, 242)),
    "street": ((150, 152, 158), (108, 110, 118)),
}
GROUND_TINT = {"day": (255, 255, 255), "sunset": (255, 206, 176), "night": (122, 126, 168)}


@dataclass(frozen=True)
class Truth:
    """What is where in a picture of height H and width W with T things, in the order of `Scene.things`."""

    boxes: np.ndarray  # float [T, 4]: left, top, right, bottom in px, covered parts included, clipped to the frame
    masks: np.ndarray  # bool [T, H, W]: what can be seen
    visible: np.ndarray  # float [T]: the share of each thing that can be seen
    parts: np.ndarray  # bool [P, H, W] in the order of `PARTS`, of all things together
    owner: np.ndarray  # int8 [H, W]: index of the thing seen at a pixel, -1 for none
    joints: tuple[dict[str, tuple[float, float]], ...]  # (x, y) in px of each thing's joints; only people have any


def render(scene: Scene, supersample: int = 4) -> Image.Image:
    """The picture: RGB, `scene.width` x `scene.height`. Deterministic, the jitter comes from `scene.style.seed`."""
    return _paint(scene, supersample, with_truth=False)[0]


def render_truth(scene: Scene, supersample: int = 4) -> tuple[Image.Image, Truth]:
    """The picture and the truth about it."""
    return _paint(scene, supersample, with_truth=True)


def _paint(scene: Scene, scale: int, with_truth: bool) -> tuple[Image.Image, Truth | None]:
    if not 1 <= scale <= 8:
        raise ValueError(f"render: supersample 1 to 8 expected, got {scale}")
    canvas = _cast_shadows(_background(scene, scale), scene)
    truth = _TruthMaps(scene, scale) if with_truth else None
    for index in scene.by_depth:
        thing = scene.things[index]
        own = np.random.default_rng([scene.style.seed, 2, thing.look])
        height = thing.size * scene.short * scale
        brush = Brush(height, thing.aspect, thing.facing == "left", 2 * scale, with_truth)
        colour = jittered(RGB[thing.colour], own, scene.style.palette)
        PAINTERS[thing.kind](brush, colour, thing.pose, own, scene.sky == "night")
        side = float(np.sign(scene.light - thing.x)) or 1.0
        layer = brush.lit(side, TINT[scene.sky], scene.style.outline * scale)
        left, top, _, _ = scene.box(thing)
        corner = (round(left * scene.width * scale) - brush.margin, round(top * scene.height * scale) - brush.margin)
        canvas.paste(layer, corner, layer)
        if truth:
            truth.add(index, brush, corner)
    picture = canvas.reduce(scale) if scale > 1 else canvas
    if scene.style.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(scene.style.blur))
    if scene.style.grain:
        grain = _chance(scene, "grain").normal(0, scene.style.grain, picture.size[::-1])
        noisy = np.asarray(picture, np.float32) + grain[..., None]
        picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    return picture, truth and truth.finish()


class _TruthMaps:
    """Collects label maps at the supersampled size while things are painted from back to front."""

    def __init__(self, scene: Scene, scale: int):
        self.scene, self.scale = scene, scale
        size = (scene.width * scale, scene.height * scale)
        self.owner = Image.new("L", size, 0)  # 1 + index of the thing
        self.part = Image.new("L", size, 0)  # 1 + index of the part
        self.area = [0.0] * len(scene.things)
        self.boxes = np.zeros((len(scene.things), 4), dtype=np.float32)
        self.joints: list[dict] = [{} for _ in scene.things]

    def add(self, index: int, brush: Brush, corner: tuple[int, int]) -> None:
        shape = brush.layer.getchannel("A")
        self.owner.paste(1 + index, (*corner, corner[0] + shape.width, corner[1] + shape.height), shape)
        self.part.paste(brush.labels, corner, shape)
        self.area[index] = np.count_nonzero(np.asarray(shape))
        left, top, right, bottom = shape.getbbox()
        box = np.array([left + corner[0], top + corner[1], right + corner[0], bottom + corner[1]]) / self.scale
        self.boxes[index] = np.clip(box, 0, [self.scene.width, self.scene.height] * 2)
        self.joints[index] = {
            name: ((x + corner[0]) / self.scale, (y + corner[1]) / self.scale) for name, (x, y) in brush.joints.items()
        }

    def finish(self) -> Truth:
        count = len(self.scene.things)
        seen = self._maps(self.owner, count)
        visible = [mask.sum() / max(1, area) for mask, area in zip(seen, self.area, strict=True)]
        owned = np.full((self.scene.height, self.scene.width), -1, dtype=np.int8)
        for index, mask in enumerate(self._shrink(seen)):
            owned[mask] = index
        masks = owned == np.arange(count)[:, None, None]  # of two things with half a pixel each, one has it
        parts = self._shrink(self._maps(self.part, len(PARTS)))
        return Truth(self.boxes, masks, np.asarray(visible), parts, owned, tuple(self.joints))

    @staticmethod
    def _maps(labels: Image.Image, count: int) -> np.ndarray:
        return np.asarray(labels) == np.arange(1, 1 + count)[:, None, None]  # [K, H·s, W·s]

    def _shrink(self, maps: np.ndarray) -> np.ndarray:
        """[K, H·s, W·s] → [K, H, W]: a pixel counts when at least half of it is covered."""
        blocks = maps.reshape(len(maps), self.scene.height, self.scale, self.scene.width, self.scale)
        return blocks.mean((2, 4), dtype=np.float32) >= 0.5


def _chance(scene: Scene, layer: str) -> np.random.Generator:
    """What is left to chance in one layer; each has its own, so that an edit of one leaves the others as they were."""
    return np.random.default_rng([scene.style.seed, 1, *layer.encode()])


def _background(scene: Scene, scale: int) -> Image.Image:
    """Sky, sun or moon, clouds or stars, hills, ground."""
    width, height, unit = scene.width * scale, scene.height * scale, scene.short * scale
    line = round(scene.horizon * height)
    strength = scene.style.palette * 0.6
    above, below = _chance(scene, "sky"), _chance(scene, "ground")
    sky = _gradient([jittered(c, above, strength) for c in SKY[scene.sky]], line)
    far_near = [jittered(c, below, strength) for c in GROUND[scene.ground]]
    ground = _gradient([_tinted(c, GROUND_TINT[scene.sky]) for c in far_near], height - line)
    column = np.concatenate([sky, ground])[:, None].astype(np.uint8)
    canvas = Image.fromarray(np.repeat(column, width, axis=1))
    pen = ImageDraw.Draw(canvas)
    earth = canvas.crop((0, line, width, height))
    _sky_lights(scene, pen, width, line, unit, above)
    canvas.paste(earth, (0, line))  # the sun sets behind the ground
    _hills(scene, pen, width, line, unit, _chance(scene, "hills"))
    if scene.style.texture:
        _ground_texture(scene, pen, width, height, line, unit, below)
    return canvas


def _gradient(stops: Sequence[Colour], length: int) -> np.ndarray:
    """[length, 3] from the first to the last colour."""
    at = np.linspace(0, len(stops) - 1, max(1, length))
    return np.stack([np.interp(at, range(len(stops)), channel) for channel in zip(*stops, strict=True)], axis=1)


def _tinted(colour: Colour, tint: Colour) -> Colour:
    return tuple(round(c * t / 255) for c, t in zip(colour, tint, strict=True))


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, rx: float, colour: Colour, ry: float | None = None) -> None:
    ry = rx if ry is None else ry
    pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)


def _sky_lights(scene: Scene, pen, width: int, line: int, unit: int, rng) -> None:
    x = scene.light * width
    if scene.sky == "night":
        stars = rng.uniform(0, width, 26), rng.uniform(0, line, 26), rng.uniform(0.4, 1, 26)
        for sx, sy, glow in zip(*stars, strict=True):
            _disc(pen, sx, sy, unit * 0.006, shade((236, 238, 255), float(glow)))
        _disc(pen, x, line * 0.26, unit * 0.068, (246, 244, 222))
        behind = tuple(int(c) for c in _gradient(SKY["night"], 101)[26])  # the sky's colour, a crescent's dark side
        _disc(pen, x + unit * 0.03, line * 0.26 - unit * 0.016, unit * 0.056, behind)
        return
    if scene.sky == "sunset":
        y = line * 0.80
        for glow in (3, 2, 1):
            _disc(pen, x, y, unit * (0.075 + 0.035 * glow), shade((255, 176, 96), 1 + 0.12 * (3 - glow)))
        _disc(pen, x, y, unit * 0.085, (255, 240, 196))
    else:
        _disc(pen, x, line * 0.24, unit * 0.085, (252, 238, 170))
        _disc(pen, x, line * 0.24, unit * 0.066, (255, 250, 214))
    cloud = (250, 252, 255) if scene.sky == "day" else (244, 168, 146)
    for _ in range(int(rng.integers(1, 4))):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0.12, 0.62) * line, unit * rng.uniform(0.03, 0.055)
        for dx, dy, k in ((-1.7, 0.35, 0.7), (-0.6, -0.1, 1.0), (0.7, 0.05, 0.85), (1.8, 0.4, 0.6)):
            _disc(pen, cx + dx * r, cy + dy * r, k * r * 1.3, cloud, k * r * 0.8)


def _hills(scene: Scene, pen, width: int, line: int, unit: int, rng) -> None:
    xs = np.linspace(0, width, 33)
    for tone, tall in ((1.12, 0.09), (0.94, 0.055)):
        phases, waves = rng.uniform(0, 6.28, 2), rng.uniform(2, 5, 2)
        swell = np.sin(xs / unit * waves[0] + phases[0]) + 0.6 * np.sin(xs / unit * waves[1] * 2.1 + phases[1])
        tops = line - unit * tall * (0.55 + 0.28 * swell)
        pen.polygon([(0, line), *zip(xs, tops, strict=True), (width, line)], fill=shade(HILLS[scene.sky], tone))


def _ground_texture(scene: Scene, pen, width: int, height: int, line: int, unit: int, rng) -> None:
    strength = 0.05 + 0.05 * scene.style.texture
    far, near, paint = (_tinted(c, GROUND_TINT[scene.sky]) for c in (*GROUND[scene.ground], (244, 240, 214)))
    deep = height - line
    if scene.ground == "street":
        pen.rectangle((0, line, width, line + 0.07 * deep), fill=shade(far, 1 + 2.5 * strength))
        y, foot = line + 0.52 * deep, line + 0.52 * deep + 0.05 * deep
        for x in np.arange(-rng.uniform(0, 0.3) * unit, width, unit * 0.30):  # dashes of the middle line
            dash = [(x, foot), (x + 0.02 * unit, y), (x + 0.17 * unit, y), (x + 0.15 * unit, foot)]
            pen.polygon(dash, fill=paint)
        return
    count = int(60 * width / height)
    marks = rng.uniform(0, width, count), rng.uniform(0, 1, count) ** 0.7, rng.choice((-1.0, 1.0), count)
    for x, depth, lift in zip(*marks, strict=True):
        y = line + depth * deep
        tone = shade(far if depth < 0.4 else near, 1 + float(lift) * strength)
        size = unit * (0.008 + 0.014 * depth)
        if scene.ground == "grass":
            pen.polygon([(x - size, y), (x, y - 2.4 * size), (x + size, y)], fill=tone)
        else:
            wide, tall = (3.2, 0.45) if scene.ground == "sand" else (3.6, 0.9)
            _disc(pen, x, y, size * wide, tone, size * tall)


def _cast_shadows(canvas: Image.Image, scene: Scene) -> Image.Image:
    """Soft ellipses, see `Scene.shadow`; on the ground, never on things."""
    shadow = Image.new("L", (scene.width, scene.height), 0)  # soft anyway: small is enough
    pen = ImageDraw.Draw(shadow)
    dark = {"day": 90, "sunset": 96, "night": 110}[scene.sky]
    for thing in scene.things:
        left, top, right, bottom = scene.shadow(thing)
        pen.ellipse((left * scene.width, top * scene.height, right * scene.width, bottom * scene.height), fill=dark)
    pen.rectangle((0, 0, scene.width, round(scene.horizon * scene.height) - 1), fill=0)
    shadow = shadow.filter(ImageFilter.GaussianBlur(0.012 * scene.short)).resize(canvas.size, Image.BILINEAR)
    return ImageChops.multiply(canvas, ImageChops.invert(shadow).convert("RGB"))
