"""The one picture of the whole system, for the README and the first notebook.

python data_samples/figures/overview.py      draws the example with the artifacts of `lite`, writes overview.png
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from seedx_lite.pipelines.detokenizer import DetokenizerPipeline
from seedx_lite.presets import load_preset
from seedx_lite.training.detokenizer import stage1
from seedx_lite.training.foundations import sdxl
from seedx_lite.training.vit import vit
from seedx_lite.viz.figures import ACCENT, INK, MUTED, use_house_style
from seedx_lite.world.draw import render
from seedx_lite.world.scene import Scene, Style, Thing

WIDTH, HEIGHT, SIDE, MIDDLE = 11.25, 3.86, 1.28, 2.48  # inches: figure, side of a picture, height of the main line
FROZEN, TRAINED, LATER = ("#E9ECF0", "#C9CED6"), ("#DCE9F7", ACCENT), ("#F6F7F8", "#DDE0E4")
THINGS = (
    Thing("tree", "pink", x=0.80, y=0.80, size=0.55, look=3),
    Thing("person", "blue", x=0.28, y=0.92, size=0.54, pose="waving", look=11),
    Thing("cat", "orange", x=0.60, y=0.95, size=0.29, facing="left", look=5),
)
EXAMPLE = Scene(THINGS, sky="day", ground="grass", light=0.55, style=Style(seed=4))


def overview(drawn: Any = None) -> Figure:
    """Picture → ViT → 256 embeddings → N = 64 → resampler → U-Net → picture, with the language model in grey below.

    drawn: the picture at the end, PIL or uint8 [H, W, 3], such as a reconstruction; by default the first again.
    """
    picture = render(EXAMPLE)
    figure = plt.figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_axis_off()
    low = MIDDLE - SIDE / 2
    _picture(axes, picture, 0.15, low, "picture")
    _box(axes, 1.80, low, 0.95, SIDE, "ViT", "frozen", FROZEN)
    _mosaic(axes, picture, 3.12, low, (16, 16), "256 visual embeddings")
    _mosaic(axes, picture, 4.88, low, (16, 4), "pooled to N = 64")
    _box(axes, 6.55, low, 1.05, SIDE, "resampler", "trained", TRAINED)
    _box(axes, 7.95, low, 1.10, SIDE, "U-Net", "its keys and\nvalues trained", TRAINED)
    _picture(axes, picture if drawn is None else drawn, 9.80, low, "picture, drawn anew")
    for start, end in ((1.43, 1.80), (2.75, 3.12), (4.40, 4.88), (6.16, 6.55), (7.60, 7.95), (9.05, 9.80)):
        _arrow(axes, (start, MIDDLE), (end, MIDDLE))
    axes.text(9.42, MIDDLE + 0.1, "VAE", ha="center", va="bottom", fontsize=8, color=MUTED)
    noise = np.random.default_rng(0).normal(128, 50, (16, 16, 3)).clip(0, 255).astype(np.uint8)
    _image(axes, noise, 8.18, 0.66, 0.64)
    _caption(axes, 8.50, 0.66, "noise")
    _arrow(axes, (8.50, 1.30), (8.50, low))
    _brace(axes, 1.80, 4.40, "visual tokenizer", "notebook 01")
    _brace(axes, 4.88, 6.16, "the bridge", None)
    _brace(axes, 6.55, 11.08, "de-tokenizer", "notebook 02")
    _language_model(axes, low)
    return figure


def save_overview(path: str | Path, drawn: Any = None) -> Path:
    """Writes `overview(drawn)` as a PNG of 256 colours, about 30 kB; returns the path."""
    use_house_style()
    figure, path = overview(drawn), Path(path)
    figure.savefig(path, dpi=144, bbox_inches=None)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _language_model(axes: Axes, low: float) -> None:
    """The part of later chapters, in grey."""
    _box(axes, 3.12, 0.16, 3.04, 0.62, "language model", "64 learnable queries; later notebooks", LATER, MUTED)
    small = {"va": "center", "color": MUTED}
    axes.text(5.34, 1.13, "output\nresampler", ha="left", fontsize=7.5, linespacing=1.15, **small)
    _arrow(axes, (5.20, 0.78), (5.20, low - 0.30), MUTED)
    axes.text(3.62, 1.13, "input\nresampler", ha="right", fontsize=7.5, linespacing=1.15, **small)
    _arrow(axes, (3.76, low - 0.30), (3.76, 0.78), MUTED)
    request = "“draw a pink tree\nand a waving person”"
    axes.text(1.43, 0.47, request, ha="center", fontsize=8, style="italic", linespacing=1.3, **small)
    _arrow(axes, (2.24, 0.47), (3.12, 0.47), MUTED)


def _box(axes: Axes, x: float, y: float, width: float, height: float, title: str, note: str, colours, ink=INK) -> None:
    style = "round,pad=0,rounding_size=0.09"
    face, edge = colours
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=1.1))
    shift = 0.10 + 0.075 * note.count("\n")
    x, y = x + width / 2, y + height / 2
    axes.text(x, y + shift, title, ha="center", va="center", fontsize=10, fontweight="bold", color=ink)
    axes.text(x, y + shift - 0.15, note, ha="center", va="top", fontsize=7.5, color=ink, linespacing=1.25)


def _image(axes: Axes, image: Any, x: float, y: float, side: float) -> None:
    axes.imshow(np.asarray(image), extent=(x, x + side, y, y + side), interpolation="nearest", aspect="auto")
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))


def _picture(axes: Axes, image: Any, x: float, y: float, caption: str) -> None:
    _image(axes, image, x, y, SIDE)
    _caption(axes, x + SIDE / 2, y, caption)


def _caption(axes: Axes, middle: float, bottom: float, text: str) -> None:
    axes.text(middle, bottom - 0.08, text, ha="center", va="top", fontsize=8.5, color=INK)


def _mosaic(axes: Axes, picture: Image.Image, x: float, y: float, shape: tuple[int, int], caption: str) -> None:
    """One tile for each embedding, in the mean colour of the area that it covers."""
    rows, columns = shape
    colours = np.asarray(picture.resize((columns, rows), Image.Resampling.BOX)) / 255
    height, width = SIDE / rows, SIDE / columns
    for row, column in np.ndindex(rows, columns):
        corner = (x + column * width, y + SIDE - (row + 1) * height)
        axes.add_patch(Rectangle(corner, width - 0.014, height - 0.014, facecolor=colours[row, column]))
    _caption(axes, x + SIDE / 2, y, caption)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    head = "-|>,head_width=0.17,head_length=0.32"
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": head, "color": colour, "lw": 1.2, "shrinkA": 3, "shrinkB": 3}
    )


def _brace(axes: Axes, left: float, right: float, title: str, note: str | None) -> None:
    y = MIDDLE + SIDE / 2 + 0.22
    axes.plot([left, left, right, right], [y - 0.07, y, y, y - 0.07], color=MUTED, lw=1.0, solid_joinstyle="miter")
    axes.text(left, y + 0.1, title, ha="left", va="bottom", fontsize=10, fontweight="bold", color=INK)
    if note:
        axes.text(right, y + 0.1, note, ha="right", va="bottom", fontsize=8, color=MUTED)


if __name__ == "__main__":
    preset = load_preset("lite")
    pipe = DetokenizerPipeline.from_artifacts(vit(preset), sdxl(preset), stage1(preset))
    reconstruction = pipe(render(EXAMPLE), generator=torch.Generator().manual_seed(0)).images[0]
    print(save_overview(Path(__file__).with_suffix(".png"), reconstruction))
