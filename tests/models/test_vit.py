import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from seedx_lite.models.vit import (
    CLIP_MEAN,
    CLIP_STD,
    VisionTransformerWithAttnPool,
    embed_pictures,
    pool_embeddings,
    preprocess,
)

SIZES = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "heads": 2, "mlp_ratio": 2}
QUERIES = {"n_queries": 16, "output_dim": 16, "pool_heads": 2}


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return VisionTransformerWithAttnPool(**SIZES, **QUERIES).eval()


def test_pooling_averages_tokens_in_a_row():
    """2×2 blocks instead of runs of consecutive tokens would scramble what every stage reads."""
    tokens = torch.randn(2, 16, 3)
    wanted = torch.nn.functional.avg_pool1d(tokens.transpose(1, 2), 4).transpose(1, 2)
    assert torch.allclose(pool_embeddings(tokens, 4), wanted, atol=1e-6)
    assert torch.equal(pool_embeddings(tokens, 16), tokens)


@pytest.mark.parametrize("n", [0, -1, 48, 512])
def test_pooling_to_a_number_that_does_not_divide(n):
    """A bad N would drop the last tokens in silence."""
    with pytest.raises(ValueError, match=rf"pool 256 visual embeddings to {n}; .*32, 64, 128, 256"):
        pool_embeddings(torch.zeros(1, 256, 2), n)


def test_preprocess():
    """Guards the channel order, the constants and the squeeze to a square."""
    picture = Image.new("RGB", (30, 20), (255, 128, 0))
    pixels = preprocess([picture, picture.convert("L")], 16)
    assert pixels.shape == (2, 3, 16, 16) and pixels.dtype == torch.float32
    wanted = (np.array([255, 128, 0]) / 255 - CLIP_MEAN) / CLIP_STD
    assert np.allclose(pixels[0].mean((1, 2)).numpy(), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        preprocess([], 16)


def test_zero_embeddings_are_those_of_the_mean_colour(vit):
    """The zero picture is zero AFTER normalisation: a black picture would be another unconditional input."""
    assert torch.allclose(vit.zero_embeddings(), vit(torch.zeros(1, 3, 16, 16)))
    black = vit(vit.preprocess([Image.new("RGB", (16, 16))]))
    assert (vit.zero_embeddings() - black).abs().max() > 1e-3


def test_position_table_of_another_grid_follows_the_weights(vit):
    """A cached interpolation would go stale when weights are loaded after the first call."""
    images = torch.randn(1, 3, 16, 16)
    first = vit(images)
    with torch.no_grad():
        vit.positional_embedding.mul_(3)
    assert (vit(images) - first).abs().max() > 1e-3


def test_no_pictures_have_no_embeddings(vit):
    """Bug: conversations without any picture end the training that they are given to."""
    assert embed_pictures(vit, np.zeros((0, 16, 16, 3), np.uint8), 4).shape == (0, 4, 16)
    assert embed_pictures(vit, np.zeros((0, 16, 16, 3), np.uint8)).shape == (0, 16, 16)


def test_bad_images_and_sizes(vit):
    """A remainder of the image would be cut off in silence by the convolution."""
    for shape in ((1, 3, 16, 12), (1, 3, 18, 18)):
        with pytest.raises(ValueError, match="expected square ones with a multiple of 4 pixels"):
            vit(torch.zeros(shape))
    for bad in ({"image_size": 18}, {"n_queries": 15}, {"heads": 3}, {"pool_heads": None}):
        with pytest.raises(ValueError, match=r"cannot build a vision encoder of .*square number"):
            VisionTransformerWithAttnPool(**{**SIZES, **QUERIES, **bad})


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0), (torch.float16, 0.01)])
def test_round_trip(vit, tmp_path, dtype, tolerance):
    """A file in 16 bits opens in float32, or the first product with an image would stop."""
    vit.save_pretrained(tmp_path, dtype)
    again = VisionTransformerWithAttnPool.from_pretrained(tmp_path)
    assert not again.training and again.proj.dtype == torch.float32
    images = torch.randn(2, 3, 16, 16)
    assert (vit(images) - again(images)).abs().max() <= tolerance


def test_checkpoints_that_do_not_fit(vit, tmp_path):
    """The official loader drops keys that do not fit and prints a line: random weights would go unnoticed."""
    vit.save_pretrained(tmp_path)
    file, tensors = tmp_path / "model.safetensors", load_file(tmp_path / "model.safetensors")
    load = VisionTransformerWithAttnPool.from_pretrained
    save_file({**tensors, "proj": torch.zeros(8, 8)}, file)
    with pytest.raises(ValueError, match=r"of another shape: proj \[8, 8\] instead of \[16, 16\].*train this stage"):
        load(tmp_path)
    save_file({"extra" if key == "proj" else key: value for key, value in tensors.items()}, file)
    with pytest.raises(ValueError, match=r"missing: proj; unexpected: extra"):
        load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"depth": 3}))
    with pytest.raises(ValueError, match=r"config.json does not fit: .*'depth'"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "Resampler"}))
    with pytest.raises(ValueError, match="describes Resampler, expected VisionTransformerWithAttnPool"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path)
    file.write_bytes(b"short")
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing; expected a folder"):
        load(tmp_path)
