"""A brush that paints shapes and, beside them, which part of a thing they are.

Shapes are given in *height units*: (0, 0) is the top left corner of a thing's box, 1 its height, so a thing of
aspect 1.75 reaches from 0 to 1.75. A thing that faces left is mirrored here, once, and nowhere else.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PARTS = ("body", "head", "arm", "leg", "tail", "ear", "wheel", "window", "door", "roof", "trunk", "sail", "seat")
SMALL_PARTS = ("arm", "leg", "tail", "ear", "wheel", "window", "door")  # the details that a coarse code loses first

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Brush:
    """Paints one thing, `height` px high, on a layer of its own, with `margin` px around its box, for outlines.
    `layer` is RGBA; `labels` holds 1 + index into PARTS (0 = nothing), or is None when no truth is asked for."""

    def __init__(self, height: float, aspect: float, mirrored: bool, margin: int, with_labels: bool):
        self.unit, self.aspect, self.mirrored, self.margin = height, aspect, mirrored, margin
        size = (int(np.ceil(height * aspect)) + 2 * margin, int(np.ceil(height)) + 2 * margin)
        self.layer = Image.new("RGBA", size, (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.layer)
        self.labels = Image.new("L", size, 0) if with_labels else None
        self._label = ImageDraw.Draw(self.labels) if with_labels else None
        self.joints: dict[str, Point] = {}

    def px(self, point: Point) -> Point:
        """From height units to px on the layer."""
        x = self.aspect - point[0] if self.mirrored else point[0]
        return x * self.unit + self.margin, point[1] * self.unit + self.margin

    def ellipse(self, centre: Point, rx: float, ry: float, colour: Colour, part: str | None = None) -> None:
        x, y = self.px(centre)
        rx, ry = rx * self.unit, ry * self.unit
        self._paint("ellipse", (x - rx, y - ry, x + rx, y + ry), colour, part)

    def polygon(self, points: Sequence[Point], colour: Colour, part: str | None = None) -> None:
        self._paint("polygon", [self.px(point) for point in points], colour, part)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, part: str | None = None, r: float = 0.0):
        """A rectangle with corners rounded by `r`."""
        (xa, ya), (xb, yb) = self.px((x0, y0)), self.px((x1, y1))
        corners = (min(xa, xb), ya, max(xa, xb), yb)
        self._paint("rounded_rectangle", corners, colour, part, radius=r * self.unit)

    def line(self, points: Sequence[Point], width: float, colour: Colour, part: str | None = None) -> None:
        """A bent line with round ends, as limbs have."""
        thickness = max(1, round(width * self.unit))
        self._paint("line", [self.px(point) for point in points], colour, part, width=thickness)
        for point in points:
            self.ellipse(point, width / 2, width / 2, colour, part)

    def joint(self, **points: Point) -> None:
        """Remember where joints are, in layer px."""
        self.joints |= {name: self.px(point) for name, point in points.items()}

    def _paint(self, shape: str, where, colour: Colour, part: str | None, **options) -> None:
        given = options if shape == "line" else options | {"width": 0}
        getattr(self._draw, shape)(where, fill=(*colour, 255), **given)
        if self._label is not None and part is not None:
            getattr(self._label, shape)(where, fill=1 + PARTS.index(part), **given)

    def lit(self, side: float, tint: Colour, outline: float) -> Image.Image:
        """The layer under light: brighter above and towards `side` (-1 left, 1 right), multiplied by `tint` (0 to 255),
        with a dark contour of `outline` px, 0 for none."""
        width, height = self.layer.size
        across = np.linspace(-0.09, 0.09, width, dtype=np.float32)[None, :] * side
        down = np.linspace(0.10, -0.14, height, dtype=np.float32)[:, None]
        pixels = np.asarray(self.layer, dtype=np.float32)
        light = (1 + across + down)[..., None] * (np.asarray(tint, dtype=np.float32) / 255)
        rgb = Image.fromarray(np.clip(pixels[..., :3] * light, 0, 255).astype(np.uint8))
        rgb.putalpha(self.layer.getchannel("A"))
        if outline <= 0:
            return rgb
        reach = 2 * max(1, round(outline)) + 1
        contour = Image.new("RGBA", rgb.size, (28, 24, 32, 0))
        contour.putalpha(self.layer.getchannel("A").filter(ImageFilter.MaxFilter(reach)))
        return Image.alpha_composite(contour, rgb)


def shade(colour: Colour, factor: float) -> Colour:
    """Lighter (factor above 1, towards white) or darker (below 1)."""
    if factor <= 1:
        return tuple(round(c * factor) for c in colour)
    return tuple(round(255 - (255 - c) * (2 - factor)) for c in colour)


def jittered(colour: Colour, rng: np.random.Generator, strength: float) -> Colour:
    """The same colour name in another shade: hue within 6 degrees, saturation and lightness within a tenth."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(c / 255 for c in colour))
    turn, lift, fade = rng.uniform(-1, 1, 3) * strength
    lightness = float(np.clip(lightness + 0.07 * lift, 0, 0.96))
    saturation = float(np.clip(saturation * (1 - 0.12 * abs(fade)), 0, 1))
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb((hue + turn * 6 / 360) % 1, lightness, saturation))
