"""The command line: what it passes on, and one line for every mistake."""

import json
import sys
import types
from pathlib import Path

import pytest

from seedx_lite import cli, doctor
from seedx_lite.doctor import check_hardware, check_packages, check_python


def run(capsys, *argv):
    """Exit status, standard output and error of a command."""
    try:
        status = cli.main(argv)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pretrain", "vit", "--preset", "light"], "error: no preset light, did you mean lite?"),
        (["ship", "cell-n64"], "error: no card tells of cell-n64; shipped can be vit,"),
        (["pretrain", "sdxl", "vit.widht=3", "--seed", "1"], "error: override 'vit.widht=3': no key vit.widht"),
        (["train", "detokenizer", "n_embeddings=60"], "error: n_embeddings=60: expected a divisor"),
        (["data", "check", "nowhere"], "nowhere"),
        (["ship", "nothing"], "nothing"),
        (["reproduce", "--notebooks", "nowhere"], "error: no notebook in"),
    ],
)
def test_mistake_is_one_line(capsys, tmp_path, monkeypatch, argv, message):
    """Bug: a traceback of forty lines hides the one word that was misspelt."""
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *argv)
    assert status == 1 and message in out + err
    assert "Traceback" not in err and len(err.splitlines()) <= 1
    assert not any(tmp_path.rglob("*.*")), "nothing half-written is left behind"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["pretrain"], "COMMAND"),
        (["pretrain", "vid"], "'vid'"),
        (["pretrain", "vit", "--sede", "3"], "'--sede'"),
        (["pretrain", "vit", "stray"], "'stray', want key=value"),
        (["data", "check", "x", "key=value"], "unexpected argument 'key=value'"),
        (["pretrain", "vit", "--seed", "one"], "--seed"),
        (["ablate", "mllm", "--seed", "1"], "--seed"),
    ],
)
def test_bad_command_line(capsys, argv, message):
    """Bug: an argument that no command knows is swallowed."""
    status, _, err = run(capsys, *argv)
    assert status == 2 and message in err


@pytest.mark.parametrize(
    ("command", "module", "function"),
    [
        (["pretrain", "vit"], "vit", "vit"),
        (["pretrain", "sdxl"], "foundations", "sdxl"),
        (["train", "detokenizer"], "detokenizer", "stage1"),
        (["train", "mllm"], "mllm", "mllm"),
    ],
)
def test_training_commands_pass_everything_on(capsys, monkeypatch, command, module, function):
    """Bug: an option that is accepted and then forgotten on the way to the training."""
    calls = []

    def stage(preset, **options):
        calls.append((preset, options))
        return Path("somewhere")

    stand_in = types.SimpleNamespace(**{function: stage})
    monkeypatch.setitem(sys.modules, f"seedx_lite.training.{module}", stand_in)
    argv = [
        *command,
        "training.vit.steps=3",
        "--preset",
        "smoke",
        "n_embeddings=32",
        "--seed",
        "5",
        "--retrain",
        "--runs",
        "r",
    ]
    assert run(capsys, *argv) == (0, "artifact: somewhere\n", "")
    [(preset, options)] = calls
    assert (preset.name, preset.training.vit.steps, preset.n_embeddings) == ("smoke", 3, 32)
    assert options == {"seed": 5, "retrain": True, "runs": "r"}


def test_reproduce_passes_parameters(capsys, monkeypatch, tmp_path):
    """Bug: `reproduce --preset smoke` runs notebooks at lite, or passes defaults that a notebook lacks."""
    calls, trained = [], []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEEDX_LITE_RUNS", raising=False)
    monkeypatch.setattr("seedx_lite.report.reproduce", lambda *a, **k: calls.append((a, k)) or 0)
    monkeypatch.setattr("seedx_lite.report.find_notebooks", lambda *_: calls and trained.append("looked"))
    monkeypatch.setattr(cli, "_run", lambda group, name, *_, retrain: trained.append((name, retrain)))
    assert run(capsys, "reproduce")[0] == 0
    assert run(capsys, "reproduce", "scenes=3", "--preset", "smoke", "--retrain", "--only", "00", "names=[a,b]")[0] == 0
    first, second = calls
    assert first[0] == ("notebooks", tmp_path / "runs/lite", {})
    assert trained.pop(0) == "looked", "a slip shows before the training, not hours later"
    stages = ["vit", "sdxl", "llama", "reader", "reader_2"]
    stages += ["detokenizer", "detokenizer-unpooled", "detokenizer-edits", "mllm", "sft-chat", "sft-edit"]
    assert trained == [(name, True) for name in stages], "once, in their order"
    given = {"preset": "smoke", "scenes": 3, "names": ["a", "b"]}
    assert second == (("notebooks", tmp_path / "runs/smoke", given), {"only": "00"})


def test_overrides_may_follow_a_list_of_names(capsys, monkeypatch):
    """Bug: `--only n64 ablation_seeds=2` looks for a variant of that name."""
    calls = []
    monkeypatch.setattr("seedx_lite.ablation.grid.run", lambda *args: calls.append(args) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["--debug", "ablate", "detokenizer", "--preset", "smoke", "--only", "n64", "n32", "ablation_seeds=1"])
    assert calls == [("detokenizer", "smoke", ["ablation_seeds=1"], "runs", 1, ["n64", "n32"])]


def test_debug_shows_the_traceback():
    """Bug: a real defect cannot be found, since its traceback is always hidden."""
    with pytest.raises(FileNotFoundError):
        cli.main(["--debug", "pretrain", "vit", "--preset", "light"])


def test_data_check_status(capsys, tmp_path):
    """Bug: bad data is reported and the exit status is 0 all the same, so a script goes on."""
    good = tmp_path / "captions.jsonl"
    good.write_text(json.dumps({"image": "none.jpg", "data": ["q", "a"]}) + "\nno json\n")
    status, out, _ = run(capsys, "data", "check", str(tmp_path))
    assert status == 1 and "captions.jsonl:2" in out


def test_doctor_finds_what_blocks(capsys, monkeypatch, tmp_path):
    """Bug: the doctor is content with a machine on which nothing can run."""
    monkeypatch.setattr(doctor, "findings", lambda runs: iter([check_python((3, 9, 1)), *check_hardware()]))
    status, out, _ = run(capsys, "doctor")
    assert status == 1 and "✗ Python" in out and "make test PYTHON=python3.11" in out


def test_doctor_names_missing_and_other_versions(monkeypatch, tmp_path):
    """Bug: a package of another version than the one measured with goes unnoticed."""
    pins = tmp_path / "constraints.txt"
    pins.write_text("numpy==0.1\ntorch==2.13.0\n")
    installed = {"numpy": "2.0", "torch": "2.13.0+cpu", "papermill": None}
    monkeypatch.setattr(doctor, "requires", lambda _: ["numpy>=2", "torch", "papermill", 'nbval; extra == "test"'])
    monkeypatch.setattr(doctor, "_version", lambda name: installed.get(name) and installed[name].partition("+")[0])
    found = list(check_packages(pins))
    assert [finding.state for finding in found] == ["bad", "note"]
    assert "papermill, nbval" in found[0].text and "pip install" in found[0].advice
    assert found[1].text == "other versions: numpy 2.0 (measured with 0.1)"


def test_doctor_finds_damaged_artifact(monkeypatch, tmp_path):
    """Bug: a truncated weight file is found by the notebook that needs it, not by the doctor."""
    folder = tmp_path / "data_samples" / "checkpoints" / "lite" / "vit"
    folder.mkdir(parents=True)
    files = {"model.safetensors": {"bytes": 3, "sha256": "0"}}
    manifest = {"stage": "vit", "id": "0", "upstream": {}, "files": files}
    (folder / "artifact.json").write_text(json.dumps(manifest))
    (folder / "model.safetensors").write_bytes(b"ab")
    monkeypatch.chdir(tmp_path)
    found = list(doctor.check_artifacts())
    assert found[0].state == "bad" and "model.safetensors" in found[0].advice
