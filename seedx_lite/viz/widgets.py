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

    def redraw(_change: Any = None) -> None:
        line.value = "drawing …"
        try:
            canvas.value = png(draw(choice.value, strength.value))
            line.value = ""
        except Exception as error:  # a kernel shows nothing of what goes wrong in a callback
            line.value = f"{type(error).__name__}: {error}"

    for control in (choice, strength):
        control.observe(redraw, "value")
    redraw()
    return ipywidgets.VBox([choice, strength, canvas, line])
