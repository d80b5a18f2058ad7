"""Pictures of any size: what is gained by reading them in squares, on grids that training had and on others."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from seedx_lite.artifacts import read_manifest
from seedx_lite.data.anyres import GRIDS, grid_resolutions
from seedx_lite.data.drawn import scenes
from seedx_lite.pipelines.assistant import SeedX
from seedx_lite.world.draw import render
from seedx_lite.world.scene import Scene
from .answers import Told, one_of_each, shares_by_topic
from .mllm import measure_detection

COUNT, SHARE = 128, 4  # scenes of each grid: the fullest of so many times more
SMALL = ("count", "presence", "colour", "place")  # topics that small things make hard


def measure_grids(
    seedx: SeedX, trained: Sequence[str], asked: Callable[[SeedX], Any] = lambda seedx: seedx, count: int = COUNT
) -> dict[str, Any]:
    """By grid ("2x1": two squares across, one down), on the fullest scenes of its size: shares of right answers to
    questions of the topics `SMALL`, and detection; `cut` into squares, and `whole`, in one square alone. Beside them
    the mean number of `things`, that of `squares` with the whole, and whether training had the grid (`trained`).

    asked: how the assistant is asked; as in pre-training, or by `Instructed`.
    """
    layout, told = seedx.processor.layout, {}
    uncut = SeedX(seedx.model, replace(layout, grids=("1x1",)), seedx.detokenizer)
    for grid, size in zip(GRIDS, grid_resolutions(GRIDS, layout.base_resolution), strict=True):
        wanted = fullest(scenes("test", SHARE * count, "narrow", size), count)
        shown = [render(scene) for scene in wanted]
        told[grid] = {
            "trained": grid in ("1x1", *trained),
            "squares": len(layout.squares(shown[0])),
            "things": sum(len(scene.things) for scene in wanted) / len(wanted),
            "cut": answered(asked(seedx), wanted, shown),
            "whole": answered(asked(uncut), wanted, shown),
        }
    return told


def answered(assistant: Any, wanted: Sequence[Scene], shown: Sequence[Image.Image]) -> Told:
    """Shares of right answers by topic and in `all` of them, and the numbers of `measure_detection`."""
    chosen = one_of_each(wanted, SMALL)
    said = assistant.ask([shown[place] for _, place in chosen], [question.text for question, _ in chosen])
    return shares_by_topic(chosen, said) | measure_detection(assistant, wanted, shown)


def fullest(some: Sequence[Scene], count: int) -> list[Scene]:
    """The `count` scenes with most things, the first of equals."""
    return sorted(some, key=lambda scene: -len(scene.things))[:count]


def trained_grids(folder: Path) -> tuple[str, ...]:
    """The grids, beside the single square, that the training of the language model in a folder had."""
    return tuple(read_manifest(folder)["config"].get("cut", ()))
