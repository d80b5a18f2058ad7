"""A stage's result on disk: load it if it is there, else train it.

    runs/<preset>/<stage>-seed<seed>/           trained here
    runs/<preset>/<stage>-seed<seed>.work/      a build under way, or crashed: its checkpoint is resumed
    data_samples/checkpoints/<preset>/<stage>/  comes with the project: seed 0, weights in float16

Every folder has an artifact.json: what was built, from which configuration and upstream artifacts, and the SHA-256 of
each file. It is written last, and then the folder is renamed in one move.
"""

import atexit
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

RUNS, SHIPPED = "runs", "data_samples/checkpoints"
MANIFEST = "artifact.json"
REQUEST = "request.json"  # in a work folder: the configuration that its checkpoint belongs to
CHECKPOINT = "checkpoint.safetensors"  # what a crashed build leaves for the next one,
PROGRESS = "progress-*.jpg"  # and what it has shown of itself on its way
PACKAGES = ("torch", "diffusers", "transformers", "safetensors")


def ensure(
    stage: str,
    build: Callable[[Path], Any],
    *,
    preset: str,
    seed: int = 0,
    config: dict[str, Any],
    upstream: Sequence[Path] = (),
    retrain: bool = False,
    runs: str | Path = RUNS,
    shipped: str | Path = SHIPPED,
) -> Path:
    """The checked folder of a stage's artifact, which `build(folder)` makes if there is none yet, while other processes
    that ask for it wait.

    build: writes its files into the folder. If its training has the folder, or one below, as `workdir`, a crashed
        build goes on from its checkpoint. Under `accelerate launch` all processes call it.
    config: all that decides the result but code, as JSON; upstream: folders that the stage builds on. An artifact of
        another configuration or upstream is never reused: ValueError, as for a damaged one.
    retrain: build in any case; an old artifact is replaced when the new one is complete.
    runs, shipped: relative ones lie in the project's folder, see `project_path`.
    """
    asked = time.time()
    for key, name in (("stage", stage), ("preset", preset)):
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"{key}={name!r}: expected only letters, digits, '-', '_' and '.'")
    request = {"config": json.loads(json.dumps(config)), "upstream": dict(map(_upstream_id, upstream))}
    target = project_path(runs) / preset / f"{stage}-seed{seed}"
    work = target.with_name(f"{target.name}.work")
    places = _places(stage, preset, seed, runs, shipped)
    if int(os.environ.get("RANK", "0")):  # the main process decides for all
        if found := _tell():
            return found
        build(work)
        _tell()  # all have finished writing
        return _tell()
    found = None if retrain else _find(places, request)
    if found is None:
        with _locked(target):
            built = target / MANIFEST  # who held the lock may have built it: that serves a retrain=True, too
            if not retrain or (built.exists() and built.stat().st_mtime >= asked):
                found = _find(places, request)
            if found is None:
                _open_work(work, request, retrain)
                print(f"{preset}/{stage}, seed {seed}: building in {os.path.relpath(work)}")
                _tell()
                try:
                    build(work)
                except BaseException:
                    _sweep(work, lambda file: file.name != REQUEST and not _survives(file))
                    if not any(work.rglob(CHECKPOINT)):
                        shutil.rmtree(work)
                    raise
                _tell()
                _sweep(work, lambda file: file.name in (CHECKPOINT, REQUEST) or file.suffix == ".part")
                _write_manifest(work, {"stage": stage, "preset": preset, "seed": seed, **request})
                _replace(target, work)
                found = target
    return _tell(found)


def find(stage: str, preset: str, seed: int = 0, runs: str | Path = RUNS, shipped: str | Path = SHIPPED) -> Path | None:
    """The checked folder of a finished artifact, whatever it was made with; None if there is none. Nothing is built."""
    return _find(_places(stage, preset, seed, runs, shipped))


def ship(
    preset: str,
    stages: Sequence[str],
    runs: str | Path = RUNS,
    shipped: str | Path = SHIPPED,
    limit: int = 15_000_000,
    finish: Callable[[str, Path], None] = lambda stage, folder: None,
) -> list[Path]:
    """Copies finished artifacts of seed 0 from `runs` to `shipped`, weights in float16, their ids kept; returns the
    folders. finish: called with the stage and the copy, which it may make smaller. Raises ValueError if float16 cannot
    hold a weight, or a file has more than `limit` bytes."""
    targets = [project_path(shipped) / preset / stage for stage in stages]
    for target in targets:
        source = project_path(runs) / preset / f"{target.name}-seed0"
        check(source)
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            manifest = read_manifest(source)
            for name in manifest["files"]:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                _copy_in_float16(source / name, part / name)
                if (size := (part / name).stat().st_size) > limit:
                    raise ValueError(f"{source / name}: {size} bytes to ship, expected {limit} at most")
            finish(target.name, part)
            _write_manifest(part, manifest | {"stored_as": "float16"})
            _replace(target, part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return targets


def describe(runs: str | Path = RUNS, shipped: str | Path = SHIPPED) -> Iterator[tuple[Path, float, str]]:
    """Every artifact on disk: its folder, megabytes, and what is wrong with it ("" if it is whole)."""
    files = [file for place in (shipped, runs) for file in sorted(project_path(place).glob(f"*/*/{MANIFEST}"))]
    for path in (file.parent for file in files if file.parent.suffix not in (".work", ".old", ".part")):
        problem = ""
        try:
            check(path)
        except (OSError, ValueError) as error:
            problem = str(error)
        yield path, sum(part.stat().st_size for part in path.rglob("*") if part.is_file()) / 1e6, problem


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """artifact.json of a folder: stage, preset, seed, config, upstream, id, files with their hashes, versions. Raises
    FileNotFoundError or ValueError that names the repair."""
    file = Path(folder) / MANIFEST
    try:
        manifest = json.loads(file.read_text())
        if missing := {"stage", "id", "upstream", "files"} - manifest.keys():
            raise KeyError(*sorted(missing))
        return manifest
    except FileNotFoundError:
        repair = _repair(file.parent) if file.parent.exists() else "Train that stage first."
        raise FileNotFoundError(f"{file} is missing: no finished artifact. {repair}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}). {_repair(file.parent)}") from None


def check(folder: Path) -> None:
    """Raises FileNotFoundError or ValueError if a file is missing or not as the manifest says; names the repair."""
    for name, entry in read_manifest(folder)["files"].items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing. {_repair(folder)}")
        if (size := file.stat().st_size) != entry["bytes"]:
            raise ValueError(f"{file} is damaged: {size} of {entry['bytes']} bytes. {_repair(folder)}")
        if _sha256(file) != entry["sha256"]:
            raise ValueError(f"{file} is damaged: not the SHA-256 of {MANIFEST}. {_repair(folder)}")


def check_upstream(folder: str | Path, *upstream: str | Path) -> None:
    """Raises ValueError if `folder` was built on other artifacts than these; folders without a manifest pass."""
    built_on = read_manifest(folder)["upstream"] if Path(folder, MANIFEST).exists() else {}
    for stage, id_ in map(_upstream_id, upstream):
        if built_on.get(stage, id_) != id_:
            raise ValueError(f"{folder} was built on another {stage} ({built_on[stage]}, given {id_}); give that one")


def _repair(folder: Path) -> str:
    return f"Delete {folder} or pass retrain=True; `git checkout` restores what came with the project."


def project_path(path: str | Path) -> Path:
    """A relative path, taken from the nearest folder upwards that has data_samples/ in it, else from here: a notebook
    in notebooks/ and a command typed beside the README mean the same file."""
    here = Path.cwd()
    path = os.environ.get("SEEDX_LITE_RUNS", RUNS) if str(path) == RUNS else path  # tests take another folder
    roots = (folder for folder in (here, *here.parents) if (folder / "data_samples").is_dir())
    return next(roots, here) / path


def _places(stage: str, preset: str, seed: int, runs: str | Path, shipped: str | Path) -> list[Path]:
    """Where an artifact may be, the one made here first."""
    made, came = project_path(runs) / preset / f"{stage}-seed{seed}", project_path(shipped) / preset / stage
    return [made] if seed else [made, came]


def _find(places: list[Path], request: dict[str, Any] | None = None) -> Path | None:
    """The first folder that exists, checked, also against a request."""
    path = next((place for place in places if place.exists()), None)
    if path and request and (differences := _differences(read_manifest(path), request)):
        remedy = "Pass retrain=True or delete the folder to build it anew, or take another seed or preset name."
        raise ValueError(f"{path} was made with another configuration ({differences}). {remedy}")
    if path:
        check(path)
    return path


def _differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    def flat(value: Any, key: str) -> dict[str, str]:
        if not isinstance(value, dict):
            return {key: json.dumps(value)}
        entries = [(f"{key}.{name}" if key else name, entry) for name, entry in value.items()]
        return {k: v for name, entry in entries for k, v in flat(entry, name).items()}

    a, b = (flat(x["config"], "") | flat(x["upstream"], "upstream") for x in (there, here))
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    return "; ".join(f"{key}: {a.get(key, 'absent')} there, {b.get(key, 'absent')} here" for key in keys)


def _open_work(work: Path, request: dict[str, Any], retrain: bool) -> None:
    """A work folder that is empty but for checkpoints of a crashed build of the same configuration."""
    note = work / REQUEST
    if note.exists() and (differences := _differences(json.loads(note.read_text()), request)):
        if not retrain:
            remedy = "Delete the folder, or pass retrain=True to begin anew."
            raise ValueError(f"{work} holds an unfinished run of another configuration ({differences}). {remedy}")
        note.unlink()
    if not note.exists():  # of another configuration, or of none that we know
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    _sweep(work, lambda file: not _survives(file))
    draft = note.with_suffix(".part")
    draft.write_text(json.dumps(request, indent=1) + "\n")
    draft.replace(note)


def _survives(file: Path) -> bool:
    return file.name == CHECKPOINT or file.match(PROGRESS)


def _sweep(folder: Path, unwanted: Callable[[Path], bool]) -> None:
    """Deletes the unwanted files and the folders that this leaves empty."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before the folder
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif path.is_file() and unwanted(path):
            path.unlink()


def _replace(target: Path, new: Path) -> None:
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Adds file hashes, versions and an id to `about`; what it has of these already stays, but for the hashes."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    if not files:
        raise ValueError(f"{about['preset']}/{about['stage']}: the build wrote no file into {folder}")
    entries = {f.relative_to(folder).as_posix(): {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in files}
    about = about | {"files": entries}
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    # Seconds in a training.json differ between runs that are the same: an id tells of the result alone.
    result = about | {"files": {name: entry for name, entry in entries.items() if not name.endswith("training.json")}}
    made = {"id": hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16], "versions": versions}
    (folder / MANIFEST).write_text(json.dumps(made | about, indent=1) + "\n")


def _copy_in_float16(source: Path, target: Path) -> None:
    """Configurations of transformers models get "dtype": "float32": diffusers opens float16 as float32, transformers as
    it is, and a pipeline of both stops at the first product."""
    if source.suffix == ".safetensors":
        import torch
        from safetensors.torch import load_file, save_file

        tensors = {k: t.half() if t.is_floating_point() else t for k, t in load_file(source).items()}
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{source}: {name} has a value that float16 cannot hold")
        save_file(tensors, target, metadata={"format": "pt"})
    elif source.name == "config.json" and "model_type" in (config := json.loads(source.read_text())):
        target.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    else:
        shutil.copyfile(source, target)


def _upstream_id(folder: Path) -> tuple[str, str]:
    """(stage, id) of an artifact; a folder that was not built here, such as the real SDXL, is "foreign"."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of an upstream artifact; build that stage first")
    about = read_manifest(folder) if (folder / MANIFEST).exists() else {"stage": folder.name, "id": "foreign"}
    return about["stage"], about["id"]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time, across processes; a killed one gives the lock back."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{target.parent.name}/{target.name}: another process is building it, waiting for it")
        lock.acquire()
    try:
        old = target.with_name(f"{target.name}.old")
        if old.exists() and not target.exists():  # a crash between the two moves of `_replace`
            old.rename(target)
        yield
    finally:
        lock.release()


def processes() -> Any:
    """Accelerate's PartialState of this process and those launched with it."""
    import torch
    from accelerate.state import PartialState

    # Left alone, PartialState takes the processes of a machine without GPU for strangers to each other.
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
    team = PartialState(cpu=cpu)
    if team.num_processes > 1:
        _part_at_exit()
    return team


@lru_cache(maxsize=1)
def _part_at_exit() -> None:
    """Ends what joins the processes of a launch before Python ends: else one may abort, its work done."""

    @atexit.register
    def part() -> None:
        processes().destroy_process_group()
        # A group that a wrapped model has used lives on, with its threads. One that lets go of the tensors of the last
        # exchange needs Python for that, and aborts the process if Python is ending (pytorch issue 190489).
        time.sleep(0.2)


def _tell(found: Path | None = None) -> Path | None:
    """Waits for all processes of a launch, then gives them what the main process found."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return found
    from accelerate.utils import broadcast_object_list

    processes().wait_for_everyone()
    return broadcast_object_list([found])[0]
