"""Captions and text encoders for training."""

import pytest
import torch

from seedx_lite.models.text import encode_text, load_text_encoders
from seedx_lite.presets import load_preset
from seedx_lite.training.text import FOLDERS, CaptionSource, new_text_encoders


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    return new_text_encoders(load_preset("smoke"))


def test_captions_depend_on_the_generator_alone(parts):
    """Bug: wording from a global state would make a resumed run differ from one that was never killed."""
    source = CaptionSource(parts[0], "train", 8, "broad", (32, 32), {"full": 0.5, "grounded": 0.5})
    first, again = (source.tokens([1, 1, 5], torch.Generator().manual_seed(3)) for _ in range(2))
    other = source.tokens([1, 1, 5], torch.Generator().manual_seed(4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_unknown_detail_is_refused(parts):
    with pytest.raises(ValueError, match="half"):
        CaptionSource(parts[0], "train", 1, "broad", (32, 32), {"half": 1.0})


def test_encoders_come_back_and_condition_as_sdxl_does(parts, tmp_path):
    """Bug: the last layer instead of the one before it: plain pipelines would condition otherwise than training."""
    for name, part in zip(FOLDERS, parts, strict=True):
        part.save_pretrained(tmp_path / name)
    tokenizer, *encoders = load_text_encoders(tmp_path)
    tokens = tokenizer(["a red cat"], padding="max_length", return_tensors="pt").input_ids
    context, pooled = encode_text(encoders, tokens)
    sizes = load_preset("smoke")
    assert context.shape == (1, 80, sizes.unet_kwargs["cross_attention_dim"]) and pooled.shape == (
        1,
        sizes.text_encoder_2.projection_dim,
    )
    first = parts[1].eval()(tokens, output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(context[..., : first.shape[-1]], first, atol=1e-6)
