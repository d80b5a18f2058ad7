"""Assistants of untrained parts."""

import pytest
import torch

from seedx_lite.data.layout import Layout
from seedx_lite.data.tokenizer import IMAGE_TOKENS, llm_tokenizer
from seedx_lite.models.mllm import ContinuousLVLM, ContinuousLVLMConfig
from seedx_lite.pipelines.assistant import SeedX
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline
from seedx_lite.presets import load_preset


@pytest.fixture(scope="session")
def assistant_of():
    """An assistant around the parts of a de-tokenizer; changes go to the configuration of its language model."""

    def made(parts, **changes):
        preset, tokenizer = load_preset("smoke", ["mllm.input_tokens=16"]), llm_tokenizer()
        torch.manual_seed(0)
        ids = {"boi_token_id": "<img>", "eoi_token_id": "</img>"}
        ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()}
        image_ids = tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS[:64]))
        model = ContinuousLVLM(ContinuousLVLMConfig(**preset.mllm_kwargs, **ids, image_token_ids=image_ids, **changes))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # for answers that differ
        layout = Layout(tokenizer, 1024, 16, 64, base_resolution=preset.vit.image_size, instruction="{instruction}")
        return SeedX(model, layout, DetokenizerPipeline(**parts))

    return made
