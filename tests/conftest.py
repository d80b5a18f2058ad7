"""What tests of several folders share."""

from dataclasses import asdict

import pytest


@pytest.fixture(scope="session")
def detokenizer_parts():
    """The parts of a de-tokenizer, untrained, at about the sizes of `smoke`."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from seedx_lite.models.resamplers import ResamplerXLV2
    from seedx_lite.models.vit import VisionTransformerWithAttnPool
    from seedx_lite.presets import load_preset

    preset = load_preset("smoke", ["vit.layers=1", "resampler.depth=1"])
    torch.manual_seed(0)
    return {
        "vit": VisionTransformerWithAttnPool(**asdict(preset.vit)).eval(),
        "vae": AutoencoderKL(**preset.vae.kwargs, scaling_factor=0.7).eval(),
        "unet": UNet2DConditionModel(**preset.unet_kwargs).eval(),
        "resampler": ResamplerXLV2(**preset.resampler_kwargs).eval(),
        "scheduler": DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False),
    }
