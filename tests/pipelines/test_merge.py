"""Training, merging, opening: the three steps of the official README."""

import shutil

import pytest
import torch
from PIL import Image

from seedx_lite.artifacts import find
from seedx_lite.cli import main
from seedx_lite.pipelines.assistant import SeedX
from seedx_lite.pipelines.merge import merge

PICTURE = Image.new("RGB", (32, 32), "navy")
FEW = ["data.train_scenes=24", "data.second_scenes=24"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for stage in ("sft-edit", "detokenizer-edits"):
        assert main(["train", stage, "--preset", "smoke", "--runs", str(folder), *FEW]) == 0
    return folder


def test_three_commands(runs, tmp_path, capsys):
    """Bugs: an assistant that is not the one that was trained; LoRA lost, or kept unasked; stage 1 for edits."""
    checkpoint = runs / "smoke/sft-edit-seed0"
    for keep in (False, True):
        out = tmp_path / f"assistant{keep}"
        argv = ["merge", str(checkpoint), str(out), "--runs", str(runs), *["--keep-lora"] * keep]
        assert main(argv) == 0 and f"assistant: {out}" in capsys.readouterr().out
        opened = SeedX.from_pretrained(out)
        assert (opened.model.config.lora is not None) == keep and opened.detokenizer.takes_condition
        parts = [find(stage, "smoke", 0, runs) for stage in ("vit", "sdxl", "detokenizer-stage2")]
        trained = SeedX.from_artifacts(checkpoint, *parts)
        text = "a red cat on grass by day"
        assert torch.allclose(opened.imagine(text), trained.imagine(text), atol=1e-4)
        history = [{"role": "user", "content": "find the cat."}]
        assert (
            opened.chat(history, PICTURE, max_new_tokens=8).text
            == trained.chat(history, PICTURE, max_new_tokens=8).text
        )


def test_what_cannot_be_merged(runs, tmp_path, monkeypatch):
    """Bugs: half a training that becomes an assistant; a folder that is overwritten; parts of another training."""
    checkpoint = runs / "smoke/sft-edit-seed0"
    with pytest.raises(ValueError, match="is there already; give a new folder"):
        merge(checkpoint, tmp_path, runs=runs)
    with pytest.raises(FileNotFoundError, match=r"no vit, sdxl, detokenizer-stage2 of seed 0 in .*smoke; train it"):
        merge(checkpoint, tmp_path / "new", runs=tmp_path / "empty")
    unfinished = tmp_path / "sft-edit-seed0.work"
    unfinished.mkdir()
    (unfinished / "request.json").write_text("{}")
    with pytest.raises(ValueError, match="has not ended; the command that began it goes on"):
        merge(unfinished, tmp_path / "new", runs=runs)
    other = tmp_path / "other"
    shutil.copytree(runs, other, ignore=shutil.ignore_patterns("cache", "sft*", "mllm*", "*.work"))
    assert (
        main(["pretrain", "vit", "--preset", "smoke", "--runs", str(other), "--retrain", "training.vit.steps=3"]) == 0
    )
    with pytest.raises(ValueError, match="vit"):
        merge(checkpoint, tmp_path / "new", runs=other)
    assert not list(tmp_path.glob("new*"))
