"""Is this machine ready? One line per check, and what to do where the answer is no."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

PYTHON = (3, 11)
MEMORY_GB = 4.0  # what training at lite needs, with a browser open beside it
DISK_GB = 2.0
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PIN = re.compile(r"^([\w.-]+)==(\S+)", re.M)
MARKS = {"good": "✓", "note": "·", "bad": "✗"}


@dataclass(frozen=True)
class Finding:
    """One result: `bad` blocks the work, `note` only slows it or explains something."""

    state: str  # good, note or bad
    topic: str
    text: str
    advice: str = ""


def examine(runs: str | Path = "runs") -> int:
    """Print all findings; returns 1 if one of them blocks, else 0."""
    blocked = 0
    for finding in findings(runs):
        print(f"{MARKS[finding.state]} {finding.topic:<10} {finding.text}")
        if finding.advice:
            print(f"  {'':<10} → {finding.advice}")
        blocked += finding.state == "bad"
    print("ready" if not blocked else f"{blocked} to mend before the notebooks can run")
    return int(blocked > 0)


def findings(runs: str | Path = "runs") -> Iterator[Finding]:
    """All checks, in the order in which one would mend them."""
    yield check_python()
    yield from (packages := list(check_packages()))
    if any(finding.state == "bad" for finding in packages):
        return  # the other checks need them too
    yield check_import_time()
    yield check_cores(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    yield from check_memory(Path(runs))
    yield from check_torch()
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
        # name of each dependency -> whether only the tests need it
        needed = {re.match(r"[\w.-]+", item)[0]: "extra" in item for item in requires("seedx-lite") or []}
    except PackageNotFoundError:
        yield Finding("bad", "packages", "seedx-lite itself is not installed", advice)
        needed = dict.fromkeys(pins, False)
    found = {name: _version(name) for name in needed}
    missing = [name for name in needed if not found[name]]
    other = [f"{n} {found[n]} (measured with {pins[n]})" for n in pins if found.get(n) not in (None, pins[n])]
    if missing:
        blocks = not all(needed[name] for name in missing)
        yield Finding("bad" if blocks else "note", "packages", f"missing: {', '.join(missing)}", advice)
    if other:
        yield Finding("note", "packages", f"other versions: {', '.join(other)}", advice)
    if not missing and not other:
        yield Finding("good", "packages", f"{len(needed)} dependencies" + (", as pinned" if pins else ""))


def _version(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]  # torch adds +cpu or +cu126
    except PackageNotFoundError:
        return None


def check_import_time() -> Finding:
    """`import seedx_lite` in a fresh interpreter: heavy imports must wait until they are used."""
    code = "import time; t = time.perf_counter(); import seedx_lite; print(time.perf_counter() - t)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if run.returncode:
        return Finding("bad", "import", run.stderr.strip().splitlines()[-1], "pip install -e . in the repository")
    return Finding("good", "import", f"import seedx_lite takes {1000 * float(run.stdout):.0f} ms")


def check_cores(cores: int) -> Finding:
    """Cores that this process may use."""
    if cores < 2:
        return Finding("note", "cores", f"{cores}", "expect every training time to be more than twice the stated one")
    return Finding("good", "cores", f"{cores} ({platform.machine()}), times in the notebooks are for 2")


def check_memory(folder: Path) -> Iterator[Finding]:
    """Free memory, and free disk where results go."""
    import psutil

    free = psutil.virtual_memory().available / 2**30
    short = free < MEMORY_GB
    advice = f"close something: training at lite wants {MEMORY_GB:g} GB" if short else ""
    yield Finding("note" if short else "good", "memory", f"{free:.1f} GB free", advice)
    place = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = psutil.disk_usage(str(place)).free / 2**30
    if not os.access(place, os.W_OK):
        yield Finding("bad", "disk", f"{place} cannot be written to", "give another folder: --runs FOLDER")
    elif free < DISK_GB:
        yield Finding("bad", "disk", f"{free:.1f} GB free", f"make it {DISK_GB:g} GB, or give --runs FOLDER")
    else:
        yield Finding("good", "disk", f"{free:.0f} GB free")


def check_torch() -> Iterator[Finding]:
    """torch can be imported; GPU; whether bfloat16 is fast on this CPU."""
    try:
        start = time.perf_counter()
        import torch
    except Exception as error:  # a broken install fails in many ways
        advice = 'pip install torch -c constraints.txt (pytorch.org, "CPU" selector, for the small build)'
        yield Finding("bad", "torch", f"cannot be imported: {error}", advice)
        return
    build = "CPU build" if torch.version.cuda is None else f"CUDA {torch.version.cuda} build"
    yield Finding("good", "torch", f"{torch.__version__}, {build}, imported in {time.perf_counter() - start:.1f} s")
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        yield Finding("good", "GPU", f"{device.name}, {device.total_memory / 2**30:.0f} GB: try the preset gpu")
    elif torch.backends.mps.is_available():
        yield Finding("good", "GPU", "Apple MPS: sampling can use it, trainings here run on the CPU")
    else:
        yield Finding("note", "GPU", "none, and none is needed for the preset lite")
    fast = [name for name in ("amx_tile", "avx512_bf16") if getattr(torch.cpu, f"_is_{name}_supported", bool)()]
    text = f"fast: {', '.join(fast)}" if fast else "works, without AMX or AVX512-BF16 it may be slower than float32"
    advice = "" if fast else "if so, add training.vit.precision=fp32 and so on to a training command"
    yield Finding("good" if fast else "note", "bfloat16", text, advice)


def check_artifacts(runs: str | Path = "runs") -> Iterator[Finding]:
    """Trained weights on disk are those that their manifests list."""
    from seedx_lite.artifacts import describe

    whole: dict[str, list[str]] = {}
    for row in describe(runs):
        if row["problem"]:
            yield Finding("bad", "artifacts", f"{row['path']}", row["problem"])
        else:
            text = f"{row['stage']} seed {row['seed']}, {row['megabytes']:.1f} MB"
            whole.setdefault(os.path.relpath(row["path"].parent), []).append(text)
    for place, names in whole.items():
        yield Finding("good", "artifacts", f"{place}: {'; '.join(names)}")
    if not any("data_samples" in place for place in whole):
        advice = "git checkout data_samples; without them the notebooks train everything first"
        yield Finding("note", "artifacts", "the ones that come with the project are not here", advice)
