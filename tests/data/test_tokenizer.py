"""Word-level tokenizers."""

import pytest
from transformers import PreTrainedTokenizerFast

from seedx_lite.data.tokenizer import clip_tokenizer
from seedx_lite.world.language import full_caption
from seedx_lite.world.scene import sample_scene


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer(80)


def test_end_token_is_not_two(tokenizer):
    """Bug: CLIP pools at the highest id instead of the end token when the end token has id 2."""
    assert tokenizer.eos_token_id == 3 and tokenizer.pad_token_id == 0


def test_captions_fit_and_come_back(tokenizer):
    """Bug: a caption of three people is cut off, so that its last thing is never learned."""
    for index in range(200):
        caption = full_caption(sample_scene(index, things=3), index)
        ids = tokenizer(caption).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id and len(ids) <= 80
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",") == caption


def test_padded_to_the_models_length(tokenizer):
    ids = tokenizer(["a red cat", "a dog"], padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (2, 80) and (ids[:, 8:] == tokenizer.pad_token_id).all()


def test_opens_without_this_package(tokenizer, tmp_path):
    """Bug: a tokenizer that only our own class can read keeps plain pipelines from opening the folder."""
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "A red cat, on grass at sunset"
    assert again(text).input_ids == tokenizer(text).input_ids and again.model_max_length == 80
