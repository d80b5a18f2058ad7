"""Figures have the panels that they should, and colours that do not depend on chance."""

import io
import runpy

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from seedx_lite.artifacts import project_path
from seedx_lite.data.layout import Layout
from seedx_lite.data.tokenizer import llm_tokenizer
from seedx_lite.viz import figures
from seedx_lite.viz.notebook import exercise, small_png
from seedx_lite.world.brush import PARTS
from seedx_lite.world.scene import COLOURS, KINDS, Scene, Thing


@pytest.fixture(autouse=True)
def house_style():
    with plt.style.context(figures.STYLE):
        yield
    plt.close("all")


def pictures(count, side=8):
    return np.random.default_rng(0).integers(0, 255, (count, side, side, 3), dtype=np.uint8)


def test_picture_grid():
    """Bugs: rows of other lengths or PIL images break the grid; a row gets another row's pictures."""
    rows = {"truth": list(pictures(3)), "drawn": [Image.fromarray(p) for p in pictures(2)], "none": []}
    figure = figures.picture_grid(rows, columns=["a", "b", "c"])
    assert len(figure.axes) == 5
    assert [text.get_text() for text in figure.texts] == ["truth", "drawn", "none"]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", "", ""]
    np.testing.assert_array_equal(figure.axes[4].images[0].get_array(), pictures(2)[1])
    boxes = [axes.get_position() for axes in figure.axes]
    assert boxes[0].y0 > boxes[3].y1 and boxes[1].x0 > boxes[0].x1, "panels overlap"


def test_picture_grid_of_nothing():
    """Bug: an empty figure passes without a word."""
    with pytest.raises(ValueError, match="no picture in the rows"):
        figures.picture_grid({"drawn": []})


def test_contact_sheet():
    """Bug: the last, shorter row is lost."""
    figure = figures.contact_sheet(pictures(11), columns=4)
    assert len(figure.axes) == 11 and not figure.texts


def test_pixels_are_shown_twice_as_large(tmp_path):
    """Bug: 64 px on a fraction of screen pixels, so that some pixels come out wider than others."""
    path = tmp_path / "grid.png"
    figures.picture_grid({"": pictures(3, 64)}).savefig(path, pad_inches=0)
    with Image.open(path) as image:
        assert abs(image.width - 3 * 128 - 2 * 8) <= 2 and abs(image.height - 128) <= 2


def test_pca_colours_have_no_free_sign():
    """Bug: another solver, or the same on another machine, turns red into cyan."""
    tokens = np.random.default_rng(1).normal(size=(4, 16, 6)) * [9, 5, 3, 1, 1, 1]
    colours = figures.pca_colours(tokens)
    assert colours.shape == (4, 4, 4, 3) and colours.dtype == np.uint8
    order = np.random.default_rng(2).permutation(4)
    np.testing.assert_array_equal(figures.pca_colours(tokens[order]), colours[order])
    red = colours[..., 0].reshape(4, 16)
    assert np.corrcoef(red.ravel(), tokens[..., 0].ravel())[0, 1] > 0.9, "the largest entry points up"


def test_maps_go_row_by_row():
    """Bug: a transposed map, which looks plausible on square grids."""
    weights = [0.0, 1.0, 0.0, 0.0]  # row 0, column 1
    lit = figures.attention_overlay(np.zeros((8, 8, 3), dtype=np.uint8), weights, side=8)
    assert lit[:4, 4:].max() == 0 and lit[:4, :4].min() > 200 and lit[4:].min() > 200
    colours = figures.class_colours([0, 1, 0, 0], ["sky", "cat"])
    assert colours[0, 1].tolist() == [0xE3, 0x9A, 0x2D]
    with pytest.raises(ValueError, match="5 tokens do not fill a square grid"):
        figures.class_colours([0] * 5, ["sky"])


def test_class_map():
    """Bugs: a class of the world without a colour; a legend with classes that do not occur."""
    assert {"none", "sky", "ground", *KINDS, *COLOURS, *PARTS} <= set(figures.CLASS_COLOURS)
    maps = {"truth": [[0, 0, 2, 2]] * 2, "read": [[0, 0, 0, 2]] * 2}
    figure = figures.class_map(maps, ["sky", "ground", "cat"], pictures={"picture": pictures(2)})
    assert len(figure.axes) == 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sky", "cat"]


def test_training_curves():
    """Bug: a key that was never logged gives an empty panel."""
    history = [{"step": 1, "loss": 2.0}, {"step": 5, "loss": 1.0, "hits": 0.5}]
    figure = figures.training_curves({"history": history}, ["loss", "hits"])
    assert [len(axes.lines[0].get_xdata()) for axes in figure.axes] == [2, 1]
    with pytest.raises(ValueError, match="no hit in the history; it has hits, loss, step"):
        figures.training_curves({"history": history}, ["hit"])


def test_overview(tmp_path):
    """Bugs: a drawing that no longer fits the package; a picture too large for the README."""
    script = runpy.run_path(str(project_path("data_samples/figures/overview.py")))
    path = script["save_overview"](tmp_path / "overview.png")
    with Image.open(path) as image:
        assert image.width > 1500 and path.stat().st_size < 200_000


def test_small_png():
    """Bugs: a palette that turns rare colours into others; white paper that is no longer white."""
    figure = figures.picture_grid({"": pictures(4, 16)})
    plain, small = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int) for data in pngs(figure))
    assert plain.shape == small.shape and np.abs(plain - small).max() <= 4
    assert (small[0, 0] == 255).all()


def test_small_png_of_a_chart():
    """Bugs: charts as large as pictures; a dot whose colour is lost in the palette."""
    figure = figures.seed_panels({"f1": {"n64": [0.2, 0.4], "n32": [0.1, 0.3]}}, {"f1": 0.9})
    figure.axes[0].plot(0, 0.3, ".", color="#FF00FF", markersize=1)
    plain, small = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int) for data in pngs(figure))
    assert Image.open(io.BytesIO(small_png(figure))).mode == "P"
    assert np.abs(plain - small).max() <= 12


def pngs(figure):
    """A figure as matplotlib stores it, and as notebooks do."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    data = file.getvalue(), small_png(figure)
    assert len(data[1]) < len(data[0])
    return data


@pytest.mark.parametrize(
    ("answer", "told"),
    [(None, "not tried yet"), (4, "right"), (5, "not yet. Twice two."), ("x", "stopped with TypeError")],
)
def test_exercise(answer, told, capsys):
    """Bug: an unsolved or wrong exercise stops the notebook, or passes."""
    exercise(1, answer, lambda value: value + 0 == 4, "Twice two.")
    assert told in capsys.readouterr().out


def test_boxes_of_a_reading_are_where_the_things_are():
    """Bug: a box of fractions drawn in pixels of the small picture, or with x and y swapped."""
    scene = Scene((Thing("car", "red", 0.25, 0.75, 0.25),))
    shown = figures.reading_boxes(np.zeros((64, 64, 3), np.uint8), scene)
    rows, columns = np.nonzero(shown.any(-1))
    left, top, right, bottom = (256 * side for side in scene.box(scene.things[0]))
    assert shown.shape == (256, 256, 3) and np.allclose((columns.min(), rows.min()), (left, top), atol=1.5)
    assert np.allclose((columns.max(), rows.max()), (right, bottom), atol=1.5)


def verdict(want, mean, **changes):
    effect = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}
    rule = {"set": "test", "metric": "pose", "contrast": ["a", "b"], "want": want}
    told = {"claim": "A", "part": "p", "rule": rule, "differences": {"0": mean, "1": mean}, "margin": 0.02}
    return told | {"effect": effect, "verdict": "reproduced"} | changes


def test_verdicts_point_where_the_claim_does():
    """Bug: a claim of `less` drawn on the other side of the margin than one of `more`, though both came out."""
    figure = figures.verdict_figure([verdict("more", 0.1), verdict("less", -0.1), verdict("more", 0, effect=None)])
    assert len(figure.axes) == 2
    for axes in figure.axes:
        mean = next(line for line in axes.lines if line.get_marker() == "o")
        assert mean.get_xdata()[0] == pytest.approx(0.1)
    assert "a − b" in figure.axes[0].get_title(loc="left") and "b − a" in figure.axes[1].get_title(loc="left")
    with pytest.raises(ValueError, match="no verdict with an effect"):
        figures.verdict_figure([verdict("more", 0, effect=None)])


def test_seed_panels():
    """Bugs: the ceiling of another panel; a variant that is left out."""
    values = {"pose": {"n64": [0.7, 0.8], "n32": [0.5]}, "error": {"n64": [0.02], "n32": [0.04]}}
    figure = figures.seed_panels(values, {"pose": 0.9})
    pose, error = figure.axes
    assert [bar.get_height() for bar in pose.patches] == [pytest.approx(0.75), 0.5]
    assert [len(line.get_xdata()) for line in pose.lines] == [2, 1, 2] and pose.lines[-1].get_ydata()[0] == 0.9
    assert [tick.get_text() for tick in error.get_xticklabels()] == ["n64", "n32"] and len(error.lines) == 2


def test_token_strips():
    """Bugs: a word without its loss, or a given one with it; queries that look like what is read."""
    tokenizer = llm_tokenizer()
    layout = Layout(tokenizer, max_length=200, input_tokens=4, output_tokens=9, base_resolution=32)
    sample = layout.edit("make it night", (32, 32), (32, 32), "here it is.")
    figure = figures.token_strips({"an edit": sample, "again": sample}, tokenizer)
    told = [text.get_text() for text in figure.axes[0].texts]
    assert told[:2] == ["an edit", "again"]
    cells = dict(zip(told[2::2], told[3::2], strict=True))
    assert cells["4 × read"] == "" and cells["9 × drawn"] == "MSE"
    assert cells["night"] == "" and cells["here"] == cells["</s>"] == "CE" and cells["</img>"] == ""
