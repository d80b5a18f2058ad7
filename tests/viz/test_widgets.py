"""Panels, tried in a kernel as a reader has it."""

import io

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

from seedx_lite.viz.widgets import png, strength_panel


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def grey(level: float) -> np.ndarray:
    return np.full((4, 4, 3), round(100 * level), dtype=np.uint8)


def test_a_row_of_pictures():
    row = pixels(png([grey(0.5), grey(1.0)], scale=2))
    assert row.shape == (8, 20, 3) and (row[:, :8] == 50).all() and (row[:, 12:] == 100).all()


def test_each_change_draws_again():
    """Bugs: the slider moves and nothing happens; an error that no one sees; the old picture under the new number."""
    asked = []

    def draw(number, strength):
        asked.append((number, strength))
        if number == 1:
            raise ValueError("no such edit")
        return [grey(strength)]

    choice, slider, canvas, line = strength_panel(["paint it", "sell it"], draw).children
    assert asked == [(0, 1.0)] and (pixels(canvas.value) == 100).all() and line.value == ""
    slider.value = 0.3
    assert asked[-1] == (0, 0.3) and (pixels(canvas.value) == 30).all()
    choice.value = 1
    assert asked[-1] == (1, 0.3) and line.value == "ValueError: no such edit"
    choice.value = 0
    assert line.value == ""


def test_panel_in_a_kernel():
    """Bug: a panel that works in a test and not where widgets talk to a front end."""
    cells = [
        "import numpy as np\nfrom seedx_lite.viz.widgets import strength_panel\n"
        "draw = lambda number, strength: [np.full((4, 4, 3), round(100 * strength), dtype=np.uint8)]\n"
        "panel = strength_panel(['a'], draw)\npanel",
        "panel.children[1].set_state({'value': 0.25})  # as a front end sends it\n"
        "import io\nfrom PIL import Image\nprint(np.asarray(Image.open(io.BytesIO(panel.children[2].value))).max())",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    assert "application/vnd.jupyter.widget-view+json" in notebook.cells[0].outputs[0].data
    assert notebook.cells[1].outputs[0].text == "25\n"
