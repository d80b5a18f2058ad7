"""The figures of the book. Each function returns a matplotlib `Figure`, or pictures that `picture_grid` can arrange.

Pictures are PIL images or uint8 arrays [H, W, 3]. Token values come row by row from a square grid, as arrays or
tensors: T = grid².
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from transformers import PreTrainedTokenizerBase

from seedx_lite.data.layout import IGNORED, Sample
from seedx_lite.world.scene import Scene

STYLE = Path(__file__).with_name("house.mplstyle")
INK, MUTED, ACCENT, WARM = "#262B33", "#8A8F98", "#2F6DB5", "#DD8126"
CELL, GAP = 1.0, 0.0625  # inches: side of a picture at scale 1 (64 px are shown twice as large), space between two

# Colours of classes on maps: the world's own colours under their names, muted ones for kinds and parts.
CLASS_COLOURS = {
    "none": "#EEF0F2", "sky": "#D5E4F3", "ground": "#E6E0CE",
    "person": "#C8503C", "cat": "#E39A2D", "dog": "#8F5B34", "car": "#6E5AA8", "house": "#A8455E", "tree": "#4C8C4A",
    "ball": "#E6C543", "boat": "#2E7F9F",
    "red": "#D42C2C", "orange": "#F2861E", "yellow": "#F0CE30", "green": "#28924E", "blue": "#2E64D4",
    "purple": "#7E3EB0", "pink": "#F58ABC", "white": "#B9BDC3",
    "body": "#B8BEC7", "head": "#E39A2D", "arm": "#C8503C", "leg": "#6E5AA8", "tail": "#8F5B34", "ear": "#D98BA0",
    "wheel": "#3A3F48", "window": "#56A5CC", "door": "#7A4A2B", "roof": "#A8455E", "trunk": "#94724E",
    "sail": "#5FB3A1", "seat": "#C9A227",
}  # fmt: skip


def use_house_style() -> None:
    """Switch to the look of the book, for this process."""
    plt.style.use(STYLE)


def picture_grid(rows: Mapping[str, Sequence[Any]], columns: Sequence[str] | None = None, scale: float = 1.0) -> Figure:
    """Rows of pictures, each with its label at the left; pixels stay visible (nearest upscaling).

    Rows may differ in length. columns: headings. scale: side of a picture in inches.
    Raises ValueError when there is no picture.
    """
    pixels = {label: [np.asarray(image) for image in images] for label, images in rows.items()}
    if not any(pixels.values()):
        raise ValueError(f"picture_grid: no picture in the rows {list(rows)}")
    count = max(len(images) for images in pixels.values())
    first = next(images[0] for images in pixels.values() if images)
    cell_w, cell_h = CELL * scale, CELL * scale * first.shape[0] / first.shape[1]
    longest = max(len(line) for label in rows for line in label.strip().split("\n"))
    margin = GAP * math.ceil((0.12 + 0.078 * longest) / GAP) if longest else 0.0
    width = margin + count * (cell_w + GAP) - GAP
    height = len(rows) * (cell_h + GAP) - GAP + (0.26 if columns else 0.0)
    figure = plt.figure(figsize=(width, height))
    for row, (label, images) in enumerate(pixels.items()):
        y = (len(rows) - 1 - row) * (cell_h + GAP)
        for column, image in enumerate(images):
            x = margin + column * (cell_w + GAP)
            axes = figure.add_axes((x / width, y / height, cell_w / width, cell_h / height))
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
            if columns and row == 0 and column < len(columns):
                axes.set_title(columns[column], loc="center", fontsize=8.5, fontweight="normal", pad=4)
        if label.strip():
            figure.text((margin - 0.1) / width, (y + cell_h / 2) / height, label, ha="right", va="center", fontsize=9)
    return figure


def contact_sheet(images: Sequence[Any], columns: int = 8, scale: float = 0.75) -> Figure:
    """Pictures side by side, row after row, without words."""
    starts = range(0, len(images), columns)
    return picture_grid({" " * row: images[s : s + columns] for row, s in enumerate(starts)}, scale=scale)


def pca_colours(tokens: Any) -> np.ndarray:
    """Tokens [K, T, D] of K pictures as colours: uint8 [K, grid, grid, 3].

    Red, green and blue are the three directions of largest variance over all K·T tokens together, so a colour means the
    same in every picture. A direction points to where its largest entry is positive, and its 2 to 98 % range is spread
    over the channel; the result does not depend on the sign that a solver happens to choose.
    """
    tokens = np.asarray(tokens, dtype=np.float64)
    pictures, count, dim = tokens.shape
    side = _side(count)
    flat = tokens.reshape(-1, dim) - tokens.reshape(-1, dim).mean(axis=0)
    _, directions = np.linalg.eigh(flat.T @ flat)
    main = directions[:, ::-1][:, :3]  # [D, 3]
    largest = main[np.abs(main).argmax(axis=0), range(main.shape[1])]
    scores = flat @ (main * np.sign(largest))  # [K·T, 3]
    low, high = np.percentile(scores, (2, 98), axis=0)
    share = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (share * 255).round().astype(np.uint8).reshape(pictures, side, side, -1)


def class_colours(indices: Any, names: Sequence[str]) -> np.ndarray:
    """Class numbers [T] as colours uint8 [grid, grid, 3], those of `CLASS_COLOURS`; names: of the classes.

    Raises ValueError when T is not the square of a whole number.
    """
    codes = np.array([[int(CLASS_COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)] for name in names], dtype=np.uint8)
    side = _side(len(indices))
    return codes[np.asarray(indices)].reshape(side, side, 3)


def class_map(
    indices: Mapping[str, Sequence[Any]], names: Sequence[str], pictures: Mapping[str, Sequence[Any]] | None = None
) -> Figure:
    """Rows of class maps, with a legend of the classes that occur in them.

    indices: row label → class numbers [T] of each picture. pictures: rows of plain pictures to show above.
    """
    maps = {label: [class_colours(one, names) for one in row] for label, row in indices.items()}
    figure = picture_grid({**(pictures or {}), **maps})
    used = sorted({int(i) for row in indices.values() for one in row for i in np.unique(np.asarray(one))})
    handles = [plt.Rectangle((0, 0), 1, 1, color=CLASS_COLOURS[names[i]], label=names[i]) for i in used]
    height, left = figure.get_size_inches()[1], figure.axes[0].get_position().x0
    lines = math.ceil(len(handles) * 0.85 / figure.get_size_inches()[0])
    figure.legend(
        handles=handles, ncols=math.ceil(len(handles) / lines), loc="upper left", bbox_to_anchor=(left, -0.08 / height),
        borderaxespad=0, borderpad=0, columnspacing=1.2, handlelength=0.9, handleheight=0.9, handletextpad=0.4,
    )  # fmt: skip
    return figure


def attention_overlay(
    picture: Any, weights: Any, cell: int | None = None, grid: int | None = None, side: int = 192
) -> np.ndarray:
    """A picture lit where `weights` [L] (on a square grid of patches) are large: uint8 [side, side, 3].

    The rest fades towards white, the largest weight keeps its full colour. cell: number of a cell to frame, such as the
    query's own, on a square of `grid` cells a side (that of the weights if None).
    """
    weights = np.asarray(weights, dtype=np.float64)
    patches = _side(len(weights))
    share = (weights / max(weights.max(), 1e-12)).reshape(patches, patches).astype(np.float32)
    images = (Image.fromarray(np.asarray(picture)), Image.fromarray(share))
    large, lit = (np.asarray(one.resize((side, side), Image.Resampling.NEAREST), dtype=np.float64) for one in images)
    lit = 0.12 + 0.88 * np.sqrt(lit[..., None])
    mixed = Image.fromarray((large * lit + 250 * (1 - lit)).round().astype(np.uint8))
    if cell is not None:
        row, column = divmod(cell, grid or patches)
        step = side / (grid or patches)
        corners = (column * step - 2, row * step - 2, (column + 1) * step + 1, (row + 1) * step + 1)
        ImageDraw.Draw(mixed).rectangle(corners, outline=WARM, width=3)
    return np.asarray(mixed)


def training_curves(record: Mapping[str, Any], keys: Sequence[str] = ("loss",)) -> Figure:
    """Curves of a training run, one panel for each key. record: what training.json holds.

    Raises ValueError for an empty history or a key that it does not have.
    """
    history = record["history"]
    known = sorted({key for entry in history for key in entry})
    if missing := [key for key in keys if key not in known]:
        told = f"no {', '.join(missing)} in the history; it has {', '.join(known) or 'nothing'}"
        raise ValueError(f"training_curves: {told}")
    figure, panels = plt.subplots(1, len(keys), figsize=(2.9 * len(keys), 2.3), squeeze=False, layout="constrained")
    for number, (axes, key) in enumerate(zip(panels[0], keys, strict=True)):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        axes.plot(*zip(*points, strict=True), color=f"C{number}", marker="o" if len(points) < 12 else None)
        axes.set_title(key.replace("_", " "))
        axes.set_xlabel("step")
    return figure


def _side(count: int) -> int:
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(f"{count} tokens do not fill a square grid")
    return side


def reading_boxes(picture: Any, scene: Scene, scale: int = 4) -> np.ndarray:
    """A picture `scale` times as large with a box around each thing of `scene`, in the colour of its kind: uint8."""
    image = Image.fromarray(np.asarray(picture)).convert("RGB")
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        sides = [side * length for side, length in zip(scene.box(thing), image.size * 2, strict=True)]
        pen.rectangle(sides, outline=CLASS_COLOURS[thing.kind], width=scale // 2)
    return np.asarray(image)


def seed_panels(
    values: Mapping[str, Mapping[str, Sequence[float]]], ceilings: Mapping[str, float], columns: int = 5, width=1.9
) -> Figure:
    """One panel for each title of `values`, of so many inches: for each variant a dot for each seed and a bar up to
    their mean. A dashed line where `ceilings` has the title. Scales start at zero; panels of errors and of shares may
    stand side by side."""
    rows = math.ceil(len(values) / columns)
    wide = min(columns, len(values))
    figure, panels = plt.subplots(rows, wide, figsize=(width * wide, 2.2 * rows), squeeze=False, layout="constrained")
    for axes in panels.flat[len(values) :]:
        axes.set_axis_off()
    for axes, (title, variants) in zip(panels.flat, values.items(), strict=False):
        for place, numbers in enumerate(variants.values()):
            axes.bar(place, np.mean(numbers), 0.62, color=f"C{place}", alpha=0.35)
            spread = np.linspace(-0.15, 0.15, len(numbers)) if len(numbers) > 1 else [0.0]
            axes.plot(place + np.asarray(spread), numbers, ".", color=f"C{place}", markersize=4)
        if title in ceilings:
            axes.axhline(ceilings[title], linestyle="--", color=MUTED, linewidth=1)
        axes.set_xticks(range(len(variants)), list(variants), fontsize=6.5)
        axes.set_title(title, fontsize=8, loc="center", fontweight="normal")
        axes.grid(visible=False, axis="x")
    return figure


STRIP_COLOURS = {"given": "#E6E8EB", "trained": "#BFDDBE", "read": "#A9C7E8", "drawn": "#F4C48F"}


def token_strips(samples: Mapping[str, Sample], tokenizer: PreTrainedTokenizerBase) -> Figure:
    """A strip of cells for each sample: its words from left to right, and each run of image tokens as one cell. In
    green what is to be said, in blue what is read of a picture, in orange what is drawn; below a cell its loss. Strips
    wider than the page go on in the next line."""
    page, line, character, gap = 9.6, 0.62, 0.078, 0.03  # inches
    cells, titles, top = [], [], 0.0
    for label, sample in samples.items():
        titles.append((label, top + 0.12))
        left, top = 0.0, top + 0.22
        for text, kind, loss in _pieces(sample, tokenizer):
            width = 0.14 + character * max(len(text), len(loss))
            if left + width > page:
                left, top = 0.0, top + line
            cells.append((left, top, width, text, kind, loss))
            left += width + gap
        top += line
    figure = plt.figure(figsize=(page, top))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, page), ylim=(top, 0))
    axes.set_axis_off()
    for label, middle in titles:
        axes.text(0, middle, label, fontsize=9, fontweight="bold", color=INK, va="center")
    for left, upper, width, text, kind, loss in cells:
        axes.add_patch(plt.Rectangle((left, upper + 0.04), width, 0.28, color=STRIP_COLOURS[kind], linewidth=0))
        for y, words, colour in ((0.18, text, INK), (0.42, loss, MUTED)):
            axes.text(left + width / 2, upper + y, words, fontsize=7, color=colour, ha="center", va="center")
    return figure


def _pieces(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str, str]]:
    """(text, one of `STRIP_COLOURS`, its loss) of each word and of each run of image tokens."""
    names = tokenizer.convert_ids_to_tokens(sample.input_ids)
    masks = zip(sample.ids_cmp_mask, sample.ids_gen_mask, sample.labels, strict=True)
    kinds = [
        "read" if read else "drawn" if drawn else "given" if label == IGNORED else "trained"
        for read, drawn, label in masks
    ]
    for kind, run in groupby(zip(kinds, names, strict=True), key=lambda one: one[0]):
        words = [name if name.strip() else "\\n" for _, name in run]
        if kind in ("read", "drawn"):
            yield f"{len(words)} × {kind}", kind, "MSE" if kind == "drawn" else ""
        else:
            yield from ((word, kind, "CE" if kind == "trained" else "") for word in words)


def verdict_figure(verdicts: Sequence[Mapping[str, Any]]) -> Figure:
    """Differences between two variants, one row for each verdict of a record: a dot for each seed, the mean with its
    interval, and the margin in grey, within which a difference does not count. Each row has a scale of its own; to the
    right of the margin is always what the claim says. Raises ValueError for none with an effect."""
    shown = [one for one in verdicts if one["effect"]]
    if not shown:
        raise ValueError("verdict_figure: no verdict with an effect; run the grid for two seeds or more")
    figure, panels = plt.subplots(len(shown), 1, figsize=(6.4, 0.95 * len(shown)), squeeze=False, layout="constrained")
    for axes, one in zip(panels[:, 0], shown, strict=True):
        sign = -1 if one["rule"]["want"] == "less" else 1
        effect, margin = {key: sign * one["effect"][key] for key in ("mean", "low", "high")}, one["margin"]
        axes.axvspan(-margin, margin, color="#E6E8EB")
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.plot([effect["low"], effect["high"]], [0, 0], color=ACCENT, linewidth=3, solid_capstyle="butt")
        axes.plot(effect["mean"], 0, "o", color=ACCENT, markersize=7)
        dots = [sign * value for value in one["differences"].values()]
        axes.plot(dots, [0.5] * len(dots), ".", color=WARM, markersize=6)
        axes.set(ylim=(-0.6, 0.9), yticks=[])
        axes.margins(x=0.15)
        first, second = one["rule"]["contrast"][::sign]
        what = f"{one['claim']}, {one['part']}: {one['rule']['metric']}, {one['rule']['set']}, {first} − {second}"
        axes.set_title(f"{what}: {one['verdict']}", fontsize=8, fontweight="normal")
        axes.tick_params(labelsize=7)
    return figure
