"""What a stranger may get wrong: pictures, captions and folders that cannot be used."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from seedx_lite.artifacts import check
from seedx_lite.cli import main
from seedx_lite.data.tokenizer import check_words, clip_tokenizer
from seedx_lite.evaluation.scene_reader import read_picture
from seedx_lite.models.scene_reader import SceneReader
from seedx_lite.pipelines.text_to_image import load_pipeline
from seedx_lite.presets import load_preset
from seedx_lite.training.reader import reader
from seedx_lite.world.language import canonical_caption
from seedx_lite.world.scene import sample_scene


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The artifact of a smoke reader."""
    return reader(load_preset("smoke"), runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture
def copy(smoke, tmp_path):
    return shutil.copytree(smoke, tmp_path / "reader")


def read(picture, smoke) -> list[str]:
    return ["read", str(picture), "--preset", "smoke", "--runs", str(smoke.parents[1])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture at all", "no picture; a whole file of"),
        (b"", "no picture; a whole file of"),
        (None, "no such picture"),
    ],
)
def test_unreadable_pictures(smoke, tmp_path, capsys, content, message):
    file = tmp_path / "picture.png"
    if content is not None:
        file.write_bytes(content)
    assert main(read(file, smoke)) == 1
    error = capsys.readouterr().err
    assert message in error and "picture.png" in error and "Traceback" not in error


def test_half_a_picture(smoke, tmp_path, capsys):
    file = tmp_path / "half.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:2000])
    assert main(read(file, smoke)) == 1
    assert "broken or cut off" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (500, 2)])
def test_empty_and_elongated_pictures(smoke, size):
    with pytest.raises(ValueError, match=f"a picture of {size[0]}x{size[1]} px"):
        read_picture(SceneReader.from_pretrained(smoke), Image.new("RGB", size), 64)


@pytest.mark.parametrize(("size", "read_as"), [((64, 64), (64, 64)), ((999, 333), (192, 64)), ((10, 12), (64, 80))])
def test_pictures_of_any_size(smoke, size, read_as):
    scene = read_picture(SceneReader.from_pretrained(smoke), Image.new("L", size, 200), 64)
    assert (scene.width, scene.height) == read_as


def test_captions_with_unknown_words():
    tokenizer = clip_tokenizer(80)
    check_words(tokenizer, [canonical_caption(sample_scene(index)) for index in range(40)])
    with pytest.raises(ValueError, match="'a red quokka by day': unknown words quokka"):
        check_words(tokenizer, ["a red cat", "a red quokka by day"])


def test_a_file_is_missing(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        SceneReader.from_pretrained(copy)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing.*`git checkout`"):
        check(copy)


def test_a_file_is_cut_off(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="reader is damaged"):
        SceneReader.from_pretrained(copy)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: \d+ of \d+ bytes"):
        check(copy)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_pipeline(copy)


def test_a_folder_of_another_version(copy):
    """One with a setting that this version does not know, and one with weights of other names."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"strides": 2}))
    with pytest.raises(ValueError, match=r"config\.json does not fit: .*strides"):
        SceneReader.from_pretrained(copy)
    (copy / "config.json").write_text(json.dumps(config | {"layers": 2}))
    with pytest.raises(ValueError, match=r"does not fit SceneReader\. Keys missing: backbone"):
        SceneReader.from_pretrained(copy)
