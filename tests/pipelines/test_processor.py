"""Pictures and texts as the language model takes them, up to its answer."""

from dataclasses import asdict

import pytest
import torch
from PIL import Image

from seedx_lite.data.layout import Layout
from seedx_lite.data.prompts import INSTRUCTION
from seedx_lite.data.tokenizer import IMAGE_TOKENS, llm_tokenizer
from seedx_lite.models.mllm import ContinuousLVLM, ContinuousLVLMConfig
from seedx_lite.models.vit import VisionTransformerWithAttnPool
from seedx_lite.pipelines.processor import LVLMProcessor
from seedx_lite.presets import load_preset

TEXTS = [INSTRUCTION.format(instruction=text) for text in ("make the cat blue", "draw a red car on grass")]


@pytest.fixture(scope="module")
def parts():
    preset, tokenizer = (
        load_preset("smoke", ["vit.layers=1", "mllm.input_tokens=16", "n_embeddings=16"]),
        llm_tokenizer(),
    )
    torch.manual_seed(0)
    ids = {"boi_token_id": "<img>", "eoi_token_id": "</img>"}
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()}
    image_ids = tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS[:16]))
    model = ContinuousLVLM(ContinuousLVLMConfig(**preset.mllm_kwargs, **ids, image_token_ids=image_ids)).eval()
    size = preset.vit.image_size
    layout = Layout(tokenizer, preset.llm.max_position_embeddings, 16, 16, base_resolution=size)
    return LVLMProcessor(layout), VisionTransformerWithAttnPool(**asdict(preset.vit)).eval(), model


def test_from_pictures_and_texts_to_pictures(parts):
    """Bug: a prompt with and one without pictures in one batch: positions, masks and pictures do not fit together."""
    processor, vit, model = parts
    side = vit.image_size
    batch = processor(TEXTS, [[Image.new("RGB", (2 * side, side), "red")], []])
    pixels = batch.pop("pixel_values")
    assert pixels.shape == (3, 3, side, side) and batch["patch_positions"].shape == (3, 2)
    with torch.no_grad():
        answers = model.generate(**batch, image_embeds=vit(pixels), max_new_tokens=30, force_image=True)
    assert [[picture.shape for picture in answer.pictures] for answer in answers] == [[(16, vit.proj.shape[1])]] * 2


def test_without_pictures(parts):
    """Bug: prompts of text alone fail, for there is nothing to encode."""
    processor, _, model = parts
    batch = processor(["a red car", "a cat"], draw=True)
    assert batch.pop("pixel_values") is None
    assert all(len(answer.pictures) == 1 for answer in model.generate(**batch, max_new_tokens=17))
    with pytest.raises(ValueError, match="2 texts and 1 lists"):
        processor(TEXTS, [[]])


def test_whole_picture_is_last(parts):
    """Bug: sub-images in another order than their positions."""
    processor, vit, _ = parts
    side = vit.image_size
    picture = Image.new("RGB", (2 * side, side), "red")
    picture.paste("blue", (side, 0, 2 * side, side))
    left, right, whole = processor.pixels([picture])
    assert left[0].min() > left[2].max() and right[2].min() > right[0].max() and whole[0].std() > 0.5
