"""Panels, tried in a kernel as a reader has it."""

import io
from types import SimpleNamespace

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

from seedx_lite.viz.widgets import edit_panel, png, strength_panel


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


def darker(picture, words):
    """Half as bright for each `dark` that is said."""
    if not words:
        raise ValueError("an empty instruction")
    dark = words.count("dark")
    return SimpleNamespace(pictures=[np.asarray(picture) // 2**dark] if dark else [], text=f"{dark} times")


def test_each_edit_starts_from_the_last_picture():
    """Bugs: every edit made of the first picture; a reply without a picture that ends the chain; another picture begun
    upon the old chain."""
    choice, words, button, canvas, line = edit_panel([grey(0.8), grey(0.4)], darker).children
    for said, wanted in (("dark", [80, 40]), ("bright", [80, 40]), ("dark", [80, 40, 20])):
        words.value = said
        button.click()
        assert pixels(canvas.value)[0, :: 3 * (4 + 2), 0].tolist() == wanted
        assert line.value == f"{said.count('dark')} times"
    words.value = ""
    button.click()
    assert line.value == "ValueError: an empty instruction"
    choice.value = 1
    assert pixels(canvas.value)[0, :: 3 * (4 + 2), 0].tolist() == [40] and line.value == ""


def test_edit_panel_in_a_kernel():
    """Bug: a button that only Python can press."""
    cells = [
        "import numpy as np\nfrom types import SimpleNamespace\nfrom seedx_lite.viz.widgets import edit_panel\n"
        "half = lambda picture, words: SimpleNamespace(pictures=[picture // 2], text=words)\n"
        "panel = edit_panel([np.full((4, 4, 3), 80, dtype=np.uint8)], half)\npanel",
        "panel.children[1].set_state({'value': 'darker'})\n"
        "panel.children[2]._handle_custom_msg({'event': 'click'}, [])  # as a front end sends them\n"
        "print(panel.children[4].value)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    assert notebook.cells[1].outputs[0].text == "darker\n"
