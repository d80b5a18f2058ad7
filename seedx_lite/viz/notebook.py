"""What every notebook starts with and ends with: quiet libraries, the machine in one line, exercises that answer."""

import io
import os
import platform
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image


def quiet() -> None:
    """Keep bars and warnings of the libraries out of stored outputs, and figures small. To be called before them."""
    import diffusers.utils.logging as diffusers_log
    import transformers.utils.logging as transformers_log

    for log in (diffusers_log, transformers_log):
        log.set_verbosity_error()
        log.disable_progress_bar()
    for message in (".*IProgress.*", ".*is_gradient_checkpointing.*"):
        warnings.filterwarnings("ignore", message=message)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        import matplotlib.pyplot as plt

        plt.close(plt.figure())  # the first figure makes the notebook set a formatter of its own
        shell.display_formatter.formatters["image/png"].for_type(Figure, small_png)


def show(rows: Mapping[str, Sequence[Any]], **words: Any) -> None:
    """Shows a `picture_grid`, to which `words` go."""
    import matplotlib.pyplot as plt

    from .figures import picture_grid

    picture_grid(rows, **words)
    plt.show()


def small_png(figure: Figure, step: int = 8) -> bytes:
    """The figure as PNG, its colours in steps of 8 of 255 levels, which halves the bytes and no eye sees. A chart,
    which has few colours, is written with a palette of 256, which halves its bytes."""
    plain, small = io.BytesIO(), io.BytesIO()
    figure.savefig(plain, format="png")
    pixels = np.asarray(Image.open(plain).convert("RGB"), dtype=np.float32)
    rounded = Image.fromarray(np.clip(np.round(pixels / step) * step, 0, 255).astype(np.uint8))
    indexed = rounded.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    lost = np.abs(np.asarray(indexed.convert("RGB"), dtype=int) - np.asarray(rounded, dtype=int)).max()
    (indexed if lost <= step else rounded).save(small, "PNG", optimize=True)
    return small.getvalue()


def machine() -> str:
    """Versions, device and dtype in use, with the reason: the one output that differs between machines."""
    import torch

    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    gpu = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = str(gpu) if gpu else f"CPU with {os.cpu_count()} cores, {torch.get_num_threads()} used"
    return (
        f"Python {platform.python_version()}, {packages}\n"
        f"notebooks compute on the CPU in float32: results then differ least between machines\n"
        f"training would use: {device}"
    )


def exercise(number: int, answer: Any, is_right: Callable[[Any], bool], hint: str) -> None:
    """Print whether `answer` is right; an answer of None has not been tried."""
    if answer is None:
        print(f"exercise {number}: not tried yet")
        return
    try:
        right = bool(is_right(answer))
    except Exception as error:
        print(f"exercise {number}: the check stopped with {type(error).__name__}: {error}")
        return
    print(f"exercise {number}: {'right' if right else f'not yet. {hint}'}")
