"""Artifacts: built once, whole or not at all, never taken for another one."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file

from seedx_lite import artifacts
from seedx_lite.artifacts import CHECKPOINT, check, describe, ensure, project_path, read_manifest, ship


@pytest.fixture
def world(tmp_path):
    """Keyword arguments of `ensure` that keep it inside a temporary folder."""
    return {"preset": "smoke", "runs": tmp_path / "runs", "shipped": tmp_path / "shipped"}


def builder(value=1.0, calls=None):
    def build(folder):
        if calls is not None:
            calls.append(value)
        (folder / "part").mkdir()
        save_file({"w": torch.full((4, 4), value)}, folder / "part" / "model.safetensors")
        (folder / "part" / "config.json").write_text(json.dumps({"model_type": "clip_text_model", "width": 4}))
        (folder / "training.json").write_text("{}")

    return build


def test_built_once_then_loaded(world, tmp_path):
    """A stage that trains again although its result is there; a manifest that omits what made the result."""
    calls = []
    vit = ensure("vit", builder(calls=calls), config={"layers": 2}, **world)
    assert ensure("vit", builder(calls=calls), config={"layers": 2}, **world) == vit and len(calls) == 1
    assert vit == tmp_path / "runs/smoke/vit-seed0"
    next_stage = ensure("unet", builder(calls=calls), config={}, upstream=[vit], seed=1, **world)
    about = read_manifest(next_stage)
    assert next_stage.name == "unet-seed1" and about["upstream"] == {"vit": read_manifest(vit)["id"]}
    assert (about["stage"], about["preset"], about["seed"]) == ("unet", "smoke", 1)
    assert set(about["files"]) == {"part/model.safetensors", "part/config.json", "training.json"}
    assert not list(tmp_path.rglob("*.work"))


def test_two_processes_build_once(world, tmp_path):
    """Two notebooks that ask for the same artifact would train twice and write into one folder."""
    program = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        from seedx_lite.artifacts import ensure
        def build(folder):
            with open({str(tmp_path / "log")!r}, "a") as log:
                log.write("built\\n")
            time.sleep(1)
            (folder / "weights").write_text("w")
        print("ready", flush=True)
        sys.stdin.readline()
        options = dict(preset="smoke", config={{}}, runs={str(tmp_path / "runs")!r}, retrain="retrain" in sys.argv)
        print((ensure("vit", build, **options) / "weights").read_text())
        """
    )
    for argument in ("load", "retrain"):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        pair = [subprocess.Popen([sys.executable, "-c", program, argument], **pipes) for _ in range(2)]
        for process in pair:
            process.stdout.readline()
        for process in pair:
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=60)[0] for process in pair]
        assert [output.splitlines()[-1] for output in outputs] == ["w", "w"]
        assert sum("another process is building it" in output for output in outputs) == 1
    assert (tmp_path / "log").read_text().split() == ["built", "built"]  # once to load, once to retrain


def test_crash_leaves_only_the_checkpoint(world, tmp_path):
    """A half-written folder that the next run takes for a result, or a lost checkpoint, or lost pictures of its way."""
    work = tmp_path / "runs/smoke/vit-seed0.work"

    def crash(folder):
        builder()(folder)
        (folder / "train").mkdir()
        (folder / "train" / CHECKPOINT).write_text("step 7")
        (folder / "train" / "checkpoint.part").write_text("half")
        (folder / "train" / "progress-3.jpg").write_text("step 3")
        raise RuntimeError("crash")

    def resume(folder):
        kept = {p.name for p in folder.rglob("*") if p.is_file()}
        assert kept == {CHECKPOINT, "progress-3.jpg", "request.json"}
        builder()(folder)

    with pytest.raises(RuntimeError, match="crash"):
        ensure("vit", crash, config={"layers": 2}, **world)
    assert not work.with_suffix("").exists() and not [*describe(world["runs"], world["shipped"])]
    with pytest.raises(ValueError, match=r"vit-seed0\.work .*layers: 2 there, 3 here.*retrain=True"):
        ensure("vit", resume, config={"layers": 3}, **world)
    path = ensure("vit", resume, config={"layers": 2}, **world)
    assert not work.exists() and set(read_manifest(path)["files"]) == {
        "part/model.safetensors",
        "part/config.json",
        "train/progress-3.jpg",
        "training.json",
    }

    with pytest.raises(ZeroDivisionError):  # nothing to resume: no folder stays
        ensure("vae", lambda folder: (folder / "half").write_text("x") / 0, config={}, **world)
    assert not list(tmp_path.rglob("vae-seed0*/"))


def test_crash_between_the_two_moves(world):
    """A machine that stops while the old artifact steps aside for the new one must not lose both."""
    path = ensure("vit", builder(), config={}, **world)
    path.rename(path.with_name("vit-seed0.old"))
    calls = []
    assert ensure("vit", builder(calls=calls), config={}, **world) == path and not calls


def test_retrain_replaces_only_when_complete(world):
    """An old result that is gone although the new one failed."""
    path = ensure("vit", builder(1.0), config={}, **world)
    with pytest.raises(ZeroDivisionError):
        ensure("vit", lambda folder: 1 / 0, config={}, retrain=True, **world)
    assert load_file(path / "part/model.safetensors")["w"][0, 0] == 1
    first = read_manifest(path)["id"]
    (path / "training.json").write_text('{"seconds": 2}')
    artifacts._write_manifest(
        path, {k: v for k, v in read_manifest(path).items() if k not in ("id", "files", "versions")}
    )
    assert read_manifest(path)["id"] == first, "the same weights, trained in other time, are the same"
    ensure("vit", builder(2.0), config={"layers": 3}, retrain=True, **world)
    assert load_file(path / "part/model.safetensors")["w"][0, 0] == 2 and read_manifest(path)["id"] != first
    assert [p.name for p in path.parent.iterdir() if p.is_dir()] == ["vit-seed0"]


def test_damage_is_named(world, monkeypatch):
    """A truncated, missing or altered file that is loaded, or reported without its name and the repair."""
    path = ensure("vit", builder(), config={}, **world)
    file, intact = path / "part/model.safetensors", (path / "part/model.safetensors").read_bytes()
    damages = {
        "damaged: .* bytes": lambda: file.write_bytes(intact[:-4]),
        "damaged: not the SHA-256": lambda: file.write_bytes(intact[:-1] + b"!"),
        "is missing": file.unlink,
    }
    for message, damage in damages.items():
        damage()
        with pytest.raises((ValueError, FileNotFoundError), match=rf"model\.safetensors.*{message}.*retrain=True"):
            ensure("vit", builder(), config={}, **world)
        assert message.split()[0].strip(":") in next(describe(world["runs"], world["shipped"]))[2]
    for text, message in (("{", "damaged"), ("{}", "damaged"), (None, "missing")):
        (path / "artifact.json").write_text(text) if text else (path / "artifact.json").unlink()
        with pytest.raises((ValueError, FileNotFoundError), match=rf"artifact\.json is {message}.*retrain=True"):
            ensure("vit", builder(), config={}, **world)
    ensure("vit", builder(), config={}, retrain=True, **world)
    assert next(describe(world["runs"], world["shipped"]))[2] == ""


def test_another_configuration_is_refused(world):
    """Weights of four layers under a configuration of six; a de-tokenizer on a ViT that it never saw."""
    vit = ensure("vit", builder(), config={"vit": {"layers": 4}, "data": 8}, **world)
    with pytest.raises(
        ValueError, match=r"vit\.layers: 4 there, 6 here; vit\.new: absent there, \[1\] here\)\. .*retrain=True"
    ):
        ensure("vit", builder(), config={"vit": {"layers": 6, "new": (1,)}, "data": 8}, **world)
    ensure("detokenizer-stage1", builder(), config={}, upstream=[vit], **world)
    ensure("vit", builder(2.0), config={"vit": {"layers": 4}, "data": 8}, retrain=True, **world)
    with pytest.raises(ValueError, match=r"upstream\.vit: "):
        ensure("detokenizer-stage1", builder(), config={}, upstream=[vit], **world)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ensure("sdxl", builder(), config={}, upstream=[vit / "nowhere"], **world)
    with pytest.raises(ValueError, match=r"preset='\.\./x'"):
        ensure("vit", builder(), config={}, **world | {"preset": "../x"})
    with pytest.raises(ValueError, match="wrote no file"):
        ensure("empty", lambda folder: None, config={}, **world)


def test_ship_in_float16(world, tmp_path):
    """Shipped weights that miss their hashes, break the upstream chain, or make a pipeline of two dtypes."""
    vit = ensure("vit", builder(1 / 3), config={}, **world)
    ensure("unet", builder(), config={}, upstream=[vit], **world)
    targets = ship("smoke", ["vit", "unet"], runs=world["runs"], shipped=world["shipped"])
    assert targets == [tmp_path / "shipped/smoke/vit", tmp_path / "shipped/smoke/unet"]
    assert load_file(targets[0] / "part/model.safetensors")["w"].dtype == torch.float16
    assert json.loads((targets[0] / "part/config.json").read_text())["dtype"] == "float32"
    assert read_manifest(targets[0])["id"] == read_manifest(vit)["id"]
    for target in targets:
        check(target)
    alone = world | {"runs": tmp_path / "elsewhere"}
    vit = ensure("vit", lambda folder: pytest.fail("trained"), config={}, **alone)
    assert vit == targets[0]
    assert ensure("unet", lambda folder: pytest.fail("trained"), config={}, upstream=[vit], **alone) == targets[1]
    assert [path.name for path, *_ in describe(alone["runs"], alone["shipped"])] == ["unet", "vit"]
    seed1 = ensure("vit", builder(), config={}, seed=1, **alone)
    assert seed1.parent == tmp_path / "elsewhere/smoke"  # only seed 0 is shipped


def test_ship_refuses(world):
    """A file too large for a repository, and infinities that only show when the picture is black."""
    folders = {"runs": world["runs"], "shipped": world["shipped"]}
    with pytest.raises(FileNotFoundError, match="Train that stage first"):
        ship("smoke", ["vit"], **folders)
    ensure("vit", builder(), config={}, **world)
    with pytest.raises(ValueError, match=r"model\.safetensors: \d+ bytes to ship, expected 100 at most"):
        ship("smoke", ["vit"], limit=100, **folders)
    ensure("vit", builder(1e6), config={}, retrain=True, **world)
    with pytest.raises(ValueError, match=r"model\.safetensors: w has a value that float16 cannot hold"):
        ship("smoke", ["vit"], **folders)
    assert not list(world["shipped"].rglob("*.*"))


def test_relative_folders_lie_in_the_project(tmp_path, monkeypatch):
    """A notebook runs in notebooks/: runs/ and data_samples/ would be looked for below it."""
    (tmp_path / "data_samples").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("SEEDX_LITE_RUNS", "elsewhere")
    assert project_path("runs") == tmp_path / "elsewhere" and project_path("results") == tmp_path / "results"
    monkeypatch.delenv("SEEDX_LITE_RUNS")
    assert project_path("runs") == tmp_path / "runs" and project_path("/x") == project_path("/") / "x"
