"""Is this machine ready? One line per check, and what to do where the answer is no."""

import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

PYTHON = (3, 11)
MEMORY_GB = 4.0  # what training at lite needs, with a browser open beside it
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PIN = re.compile(r"^([\w.-]+)==(\S+)", re.M)
# What comes with the project
STAGES = ("vit", "sdxl", "llama", "reader", "reader_2", "mllm")
STAGES += ("detokenizer-stage1", "detokenizer-unpooled", "detokenizer-stage2")
MARKS = {"good": "✓", "note": "·", "bad": "✗"}


class Finding(NamedTuple):
    """One result: `bad` blocks the work, `note` only slows it or explains something."""

    state: str  # good, note or bad
    topic: str
    text: str
    advice: str = ""


def examine(runs: str | Path = "runs") -> int:
    """Print all findings; returns 1 if one of them blocks, else 0."""
    blocked = 0
    for state, topic, text, advice in findings(runs):
        print(f"{MARKS[state]} {topic:<10} {text}" + (f"\n{'':<12} → {advice}" if advice else ""))
        blocked += state == "bad"
    print(f"{blocked} to mend before the notebooks can run" if blocked else "ready")
    return int(blocked > 0)


def findings(runs: str | Path = "runs") -> Iterator[Finding]:
    """All checks, in the order in which one would mend them."""
    yield check_python()
    yield from (packages := list(check_packages()))
    if not any(finding.state == "bad" for finding in packages):  # the other checks need them too
        yield from check_hardware()
        yield from check_artifacts(runs)


def check_python(found: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    """Python is new enough."""
    text = ".".join(map(str, found))
    if found[:2] < PYTHON:
        return Finding("bad", "Python", text, "make test PYTHON=python3.11, after deleting .venv")
    return Finding("good", "Python", f"{text} at {sys.prefix}")


def check_packages(constraints: Path = CONSTRAINTS) -> Iterator[Finding]:
    """Every dependency is there; a version other than the pinned one is worth a note."""
    advice = 'make test, or: pip install -e ".[test]" -c constraints.txt'
    pins = dict(PIN.findall(constraints.read_text())) if constraints.is_file() else {}
    try:
        for_tests = {re.match(r"[\w.-]+", item)[0]: "extra" in item for item in requires("seedx-lite") or []}
    except PackageNotFoundError:
        yield Finding("bad", "packages", "seedx-lite itself is not installed", advice)
        return
    found = {name: _version(name) for name in for_tests}
    missing = [name for name in found if not found[name]]
    other = [f"{n} {found[n]} (measured with {pins[n]})" for n in pins if found.get(n) not in (None, pins[n])]
    if missing:
        state = "note" if all(for_tests[name] for name in missing) else "bad"
        yield Finding(state, "packages", f"missing: {', '.join(missing)}", advice)
    if other:
        yield Finding("note", "packages", f"other versions: {', '.join(other)}", advice)
    if not missing and not other:
        yield Finding("good", "packages", f"{len(found)} dependencies" + (", as pinned" if pins else ""))


def _version(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]  # torch adds +cpu or +cu126
    except PackageNotFoundError:
        return None


def check_hardware() -> Iterator[Finding]:
    """Cores that this process may use, free memory, a torch that can be imported, and a GPU."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slow = "expect every training time to be more than twice the stated one" if cores < 2 else ""
    text = f"{cores} ({platform.machine()}), times in the notebooks are for 2"
    yield Finding("note" if slow else "good", "cores", text, slow)
    free = psutil.virtual_memory().available / 2**30
    close = f"close something: lite wants {MEMORY_GB:g} GB" if free < MEMORY_GB else ""
    yield Finding("note" if close else "good", "memory", f"{free:.1f} GB free", close)
    try:
        import torch
    except Exception as error:  # a broken install fails in many ways
        advice = 'pip install torch -c constraints.txt (pytorch.org, "CPU" selector, for the small build)'
        yield Finding("bad", "torch", f"cannot be imported: {error}", advice)
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield Finding("good", "torch", f"{torch.__version__}, {build} build")
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        yield Finding("good", "GPU", f"{device.name}, {device.total_memory / 2**30:.0f} GB: try the preset gpu")
    else:
        yield Finding("note", "GPU", "no CUDA device, and none is needed for the preset lite")


def check_artifacts(runs: str | Path = "runs") -> Iterator[Finding]:
    """Trained weights on disk are those that their manifests list."""
    from seedx_lite.artifacts import describe

    whole: dict[str, list[str]] = {}  # folder: its artifacts
    for path, megabytes, problem in describe(runs):
        if problem:
            yield Finding("bad", "artifacts", str(path), problem)
        else:
            whole.setdefault(os.path.relpath(path.parent), []).append(f"{path.name} {megabytes:.1f} MB")
    for place, names in whole.items():
        yield Finding("good", "artifacts", f"{place}: {', '.join(names)}")
    there = {name.split()[0] for place, names in whole.items() if place.endswith("lite") for name in names}
    if missing := [stage for stage in STAGES if not there & {stage, f"{stage}-seed0"}]:
        advice = "git checkout data_samples; without them the notebooks train for hours first"
        yield Finding("note", "artifacts", f"lite has no {', '.join(missing)}", advice)
