"""Presets: they load, fit together, can be changed, and a slip is named."""

import json
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest

from seedx_lite import presets
from seedx_lite.presets import PRESET_FOLDER, PRESETS, load_preset

GOLDEN = Path(__file__).parent / "golden"


def test_module_and_folder_of_one_name():
    """Bug: an __init__.py in presets/ would hide presets.py."""
    assert Path(presets.__file__).name == "presets.py"
    assert sorted(path.stem for path in PRESET_FOLDER.iterdir()) == sorted(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_make_models(name):
    """Bug: a preset that no one has run, with a block type or width that diffusers refuses."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    preset = load_preset(name)
    assert preset.name == name
    with torch.device("meta"):
        unet = UNet2DConditionModel(**preset.unet_kwargs)
        vae = AutoencoderKL(**preset.vae.kwargs)
    assert unet.config.cross_attention_dim == sum(
        preset.resampler_kwargs[key] for key in ("output1_dim", "output2_dim")
    )
    assert 2 ** (len(vae.config.down_block_types) - 1) == preset.vae.factor


def test_seedx_17b_is_the_official_size():
    """Bug: a typo in a size of the released model, found only after a download of 30 GB."""
    files = json.loads((GOLDEN / "full_size_keys.json").read_text())["files"]
    preset = load_preset("seedx-17b")
    vit = files["QwenViT/qwen_vit_G.pt"]["tensors"]
    assert vit["conv1.weight"] == [preset.vit.width, 3, preset.vit.patch_size, preset.vit.patch_size]
    assert vit["proj"] == [preset.vit.output_dim] * 2
    assert vit["transformer.resblocks.0.mlp.c_fc.weight"][0] == int(preset.vit.width * preset.vit.mlp_ratio)
    assert f"transformer.resblocks.{preset.vit.layers - 1}.ln_1.weight" in vit
    assert f"transformer.resblocks.{preset.vit.layers}.ln_1.weight" not in vit
    adapter = files["seed_detokenizer/first_stage/pytorch_model.bin"]["tensors"]
    sizes = preset.resampler_kwargs
    assert adapter["resampler.latents"] == [1, sizes["num_queries"], sizes["dim"]]
    assert adapter["resampler.proj_in.weight"] == [sizes["dim"], sizes["embedding_dim"]]
    assert adapter["resampler.unet_proj_1.weight"][0] == sizes["output1_dim"]
    assert adapter["resampler.unet_proj_2.weight"][0] == sizes["output2_dim"]
    wide = preset.unet_kwargs["projection_class_embeddings_input_dim"]
    assert adapter["unet.add_embedding.linear_1.weight"][1] == wide
    llm = files["seed_x/llm"]["tensors"]
    assert llm["model.embed_tokens.weight"] == [preset.llm.vocab_size, preset.llm.hidden_size]
    assert llm["model.layers.0.mlp.up_proj.weight"][0] == preset.llm.intermediate_size
    assert f"model.layers.{preset.llm.num_hidden_layers}.mlp.up_proj.weight" not in llm


def test_smoke_interpolates_positions():
    """Bug: tests at 16x16 patches never reach the interpolation of position tables."""
    vit = load_preset("smoke").vit
    assert (vit.image_size // vit.patch_size) ** 2 != vit.n_queries == 256


def test_overrides_apply_in_order():
    """Bug: an override that is parsed, accepted and then lost, or read as text."""
    preset = load_preset("lite", ["training.vit.steps=7", "training.vit.betas=[0.8,0.9]", "training.vit.steps=9"])
    assert preset.training.vit.steps == 9 and preset.training.vit.betas == (0.8, 0.9)
    assert asdict(preset)["training"]["vae"] == asdict(load_preset("lite"))["training"]["vae"]


def test_frozen():
    """Bug: a notebook changes a size in place and every later cell silently has it too."""
    with pytest.raises(FrozenInstanceError):
        load_preset("lite").vit.width = 3


def test_file_of_ones_own(tmp_path):
    """Bug: one's own file must repeat every entry, or takes the name of its base."""
    file = tmp_path / "mine.yaml"
    file.write_text("base: lite\nvit: {layers: 6}\n")
    preset = load_preset(file)
    assert (preset.name, preset.vit.layers, preset.vit.width) == ("mine", 6, load_preset("lite").vit.width)
    (tmp_path / "other.yaml").write_text("base: mine.yaml\nvit: {heads: 2}\n")
    assert load_preset(tmp_path / "other.yaml").vit.layers == 6, "a base lies beside the file that names it"
    file.write_text("base: other.yaml\n")
    with pytest.raises(ValueError, match="is its own base"):
        load_preset(file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vit.widht=3", r"no key vit.widht, did you mean vit.width\? Valid under vit: image_size, patch_size"),
        ("zzz=3", "no key zzz; Valid: name, image_size"),
        ("vit.width=wide", "vit.width: Value 'wide'"),
        ("vit.width=1.5", "vit.width: Value '1.5'"),
        ("training.vit.betas=[1]", "training.vit.betas"),
        ("vit=3", "vit is a group: set vit.image_size"),
        ("steps", "expected key=value"),
        ("n_embeddings=60", "n_embeddings=60: expected a divisor of vit.n_queries=256"),
        ("n_embeddings=0", "n_embeddings=0"),
        ("vit.heads=3", "vit.width=128 is not a multiple of vit.heads=3"),
        ("vit.patch_size=0", "vit.patch_size=0"),
        ("vit.n_queries=60", "vit.n_queries=60: expected a square"),
        ("image_size=32", "unet.sample_size: expected 8"),
        ("unet.attention_head_dim=[2]", "unet.attention_head_dim: expected 3 entries"),
        ("training.vae.schedule=linear", "schedule=linear: expected cosine or constant"),
        ("training.vae.steps=0", "steps=0"),
        ("training.vae.clip_norm=-1", "clip_norm=-1.0: expected 0 or more"),
        ("training.vae.learning_rate=0", "learning_rate=0.0: expected more than 0"),
        ("data.train_scenes=0", "data.train_scenes=0: expected 1 or more"),
        ("data.second_scenes=0", "data.second_scenes=0: expected 1 or more"),
        ("data.second_scenes=9", "data.second_scenes=9: expected train_scenes or more"),
    ],
)
def test_bad_override(override, message):
    """Bug: a misspelt or impossible entry is ignored, and hours of training answer another question."""
    with pytest.raises(ValueError, match=message):
        load_preset("lite", [override])


def test_a_training_that_a_preset_lacks_needs_all_its_entries():
    with pytest.raises(ValueError, match=r"training\.vit_dense\.batch_size has no value"):
        load_preset("smoke", ["training.vit_dense.steps=64"])


def test_unknown_preset():
    """Bug: a message that does not say which presets there are."""
    with pytest.raises(FileNotFoundError, match=r"no preset light, did you mean lite\? Valid: smoke, lite, gpu"):
        load_preset("light")
    with pytest.raises(FileNotFoundError, match=r"no preset file gone.yaml"):
        load_preset("gone.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vit: [", "mine.yaml is not readable as YAML"),
        ("- 1", "expected lines of"),
        ("", "has no value"),
        ("image_size: 64", "has no value"),
        ("base: mine.yaml", "is its own base"),
        ("base: lite\nvit: {depth: 3}", "mine.yaml: no key vit.depth"),
    ],
)
def test_bad_file(tmp_path, monkeypatch, text, message):
    """Bug: a slip in one's own file ends in a traceback from within a YAML library."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_preset("mine.yaml")
