"""Panels of ipywidgets, for a notebook with a live kernel. What they show is a picture, so each has a static twin."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import numpy as np
from PIL import Image


def png(pictures: Sequence[Any], scale: int = 3) -> bytes:
    """Pictures of one height side by side, `scale` times as large, as PNG."""
    arrays = [np.asarray(picture) for picture in pictures]
    gap = np.full((arrays[0].shape[0], 2, 3), 255, dtype=np.uint8)
    row = np.concatenate([part for array in arrays for part in (array, gap)][:-1], axis=1)
    image = Image.fromarray(row)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def strength_panel(choices: Sequence[str], draw: Callable[[int, float], Sequence[Any]]) -> ipywidgets.VBox:
    """A list of `choices`, a slider from 0 to 1 and what `draw(number of the choice, strength)` gives: pictures, shown
    side by side, anew after each change. `children` are list, slider, picture and a line that tells of errors."""
    choice = ipywidgets.Dropdown(options=[(text, number) for number, text in enumerate(choices)], description="edit")
    strength = ipywidgets.FloatSlider(
        value=1.0, min=0.0, max=1.0, step=0.05, description="strength", continuous_update=False
    )
    canvas, line = ipywidgets.Image(format="png"), ipywidgets.Label()

    @_telling(line)
    def redraw(_change: Any = None) -> str:
        canvas.value = png(draw(choice.value, strength.value))
        return ""

    for control in (choice, strength):
        control.observe(redraw, "value")
    redraw()
    return ipywidgets.VBox([choice, strength, canvas, line])


def edit_panel(pictures: Sequence[Any], edit: Callable[[Any, str], Any]) -> ipywidgets.VBox:
    """A list of pictures, a line for an instruction, a button, and all pictures so far, side by side. The button edits
    the last of them by `edit(picture, instruction)`, whose `pictures` follow it; its `text` is told below, as are
    errors. `children` are list, instruction, button, picture and that line."""
    choice = ipywidgets.Dropdown(options=[(f"picture {k}", k) for k in range(len(pictures))], description="begin with")
    words = ipywidgets.Text(placeholder="make it night", description="instruction")
    button, canvas, line = ipywidgets.Button(description="edit"), ipywidgets.Image(format="png"), ipywidgets.Label()
    chain: list[Any] = []

    @_telling(line)
    def begin(_change: Any = None) -> str:
        chain[:] = [pictures[choice.value]]
        canvas.value = png(chain)
        return ""

    @_telling(line)
    def go(_button: Any = None) -> str:
        reply = edit(chain[-1], words.value)
        chain.extend(reply.pictures)
        canvas.value = png(chain)
        return reply.text

    choice.observe(begin, "value")
    button.on_click(go)
    begin()
    return ipywidgets.VBox([choice, words, button, canvas, line])


def _telling(line: ipywidgets.Label) -> Callable[[Callable[..., str]], Callable[..., None]]:
    """A callback whose words, or whose error, `line` tells: a kernel shows nothing of what goes wrong in it."""

    def around(callback: Callable[..., str]) -> Callable[..., None]:
        def run(*given: Any) -> None:
            line.value = "drawing …"
            try:
                line.value = callback(*given)
            except Exception as error:
                line.value = f"{type(error).__name__}: {error}"

        return run

    return around
