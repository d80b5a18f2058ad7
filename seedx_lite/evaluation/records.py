"""Stored results, and whether a number computed again agrees with them.

Measured here, it is runs/<preset>/NAME-seed<seed>.json; records of `lite` at seed 0 come with the project, as
data_samples/results/NAME.json. As with artifacts, what was made here goes before what was shipped.

A record is a dict with the `preset`, the `seed` and the `artifacts` (stage → id) that it was measured on, its numbers,
and a `tolerance`, one or one per metric: by how much they may differ when nothing but arithmetic does.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seedx_lite.artifacts import project_path
from seedx_lite.data.formats import replacing

SHIPPED = "data_samples/results"


def record_path(name: str, preset: str, seed: int = 0, runs: str | Path = "runs") -> Path:
    """Where the record of a preset and seed is, or would be written to."""
    path, shipped = _measured(name, preset, seed, runs), project_path(SHIPPED) / f"{name}.json"
    return shipped if (preset, seed) == ("lite", 0) and not path.is_file() and shipped.is_file() else path


def _measured(name: str, preset: str, seed: int, runs: str | Path) -> Path:
    return project_path(runs) / preset / f"{name}-seed{seed}.json"


def save_record(name: str, record: Mapping[str, Any], runs: str | Path = "runs") -> Path:
    """Writes a record in one move, floats to four decimals, innermost lists and dicts on one line. Returns its path."""
    text = json.dumps(_rounded(record), indent=1, ensure_ascii=False)
    innermost = r"[\[{][^\[\]{}]*[\]}]"  # strings in JSON hold no line breaks, so joining lines changes no value
    text = re.sub(innermost, lambda found: re.sub(r"\n *", " ", found[0]), text)
    path = _measured(name, record["preset"], record["seed"], runs)
    with replacing(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")
    return path


def load_record(name: str, preset: str, seed: int = 0, runs: str | Path = "runs") -> dict[str, Any] | None:
    """The stored record, or None when there is none of this preset and seed. Raises ValueError for a damaged file."""
    path = record_path(name, preset, seed, runs)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["tolerance"], float | dict):
            raise TypeError("tolerance must be a number, or one per metric")
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); `git checkout` restores it, or measure it anew") from error


def ship_records(runs: str | Path = "runs") -> list[Path]:
    """Copies the records of `lite` at seed 0, and the pictures beside them, to where they are committed."""
    found = [path for path in (project_path(runs) / "lite").glob("*-seed0.*") if path.suffix in (".json", ".png")]
    return [shutil.copyfile(path, project_path(SHIPPED) / path.name.replace("-seed0", "")) for path in sorted(found)]


def on_threads(measure: Callable[[], Any], counts: Sequence[int] = (1, 2)) -> dict[str, Any]:
    """The same measurement with so many threads of torch, as `threads 1` and so on; then torch has its usual number."""
    import torch

    usual, repeats = torch.get_num_threads(), {}
    for count in counts:
        torch.set_num_threads(count)
        repeats[f"threads {count}"] = measure()
    torch.set_num_threads(usual)
    return repeats


def training_minutes(training: Mapping[str, Any]) -> float:
    """Minutes of a training's steps at the median of their seconds, which pauses and other programs hardly touch; the
    time by the clock where the median was not measured. training: what training.json holds."""
    steps = training["config"]["steps"] * training.get("step_seconds", 0)
    return (steps or training["seconds"]) / 60


def numbers(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """All floats of a record under dotted keys, such as `retrieval.picture_to_caption`."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            found[prefix + key] = value
    return found


def largest_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Over the numbers that both records have."""
    a, b = numbers(one), numbers(other)
    return max(abs(a[key] - b[key]) for key in a.keys() & b.keys())


def verdict(stored: Mapping[str, Any] | None, computed: Mapping[str, Any], key: str) -> str:
    """A stored number, and whether the computed one is within the record's tolerance of it, for a notebook to print.

    The computed number is told only where it disagrees, or where nothing is stored: it differs between machines in its
    last digits, and outputs are compared letter by letter. Raises KeyError when there is no such number.
    """
    new = numbers(computed)[key]
    if stored is None:
        return f"computed {new:.3f}, no stored record for this preset"
    old, tolerance = numbers(stored)[key], stored["tolerance"]
    agrees = abs(new - old) <= tolerance
    return f"{old:<6} computed again: " + (f"agrees, ± {tolerance}" if agrees else f"DIFFERS, {new:.4f}")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    if not isinstance(value, float):
        return value
    return round(value, 4) if abs(value) >= 0.01 else float(f"{value:.3g}")  # a learning rate keeps its digits
