"""The de-tokenizer with a condition image: what the U-Net is shown, how guidance combines it, and bad input."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from seedx_lite.models.detokenizer import SDXLAdapter, SDXLAdapterWithLatentImage, read_adapter, widen_conv_in
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline

STEPS = 2


@pytest.fixture(scope="module")
def pipe(detokenizer_parts):
    """Untrained parts with a U-Net of 8 channels, the new four of which are not zero."""
    parts = copy.deepcopy(detokenizer_parts)
    widen_conv_in(parts["unet"])
    torch.nn.init.normal_(parts["unet"].conv_in.weight, std=0.1)
    made = DetokenizerPipeline(**parts, vit_down=4)
    made.set_progress_bar_config(disable=True)
    return made


def noisy(seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


PICTURES = [noisy(seed) for seed in (1, 2, 3)]


def draw(pipe, conditions=None, **options):
    options = {"num_inference_steps": STEPS, "output_type": "latent"} | options
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    return pipe(PICTURES, generator=generators, condition_images=conditions, **options).images


def test_the_unet_sees_latents_without_the_scaling_factor(pipe, monkeypatch):
    """Bugs: scaled latents, which the released weights do not expect; noise and condition in the wrong order; one
    picture's condition given to another."""
    seen, forward = [], pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda x, *a, **k: seen.append(x) or forward(x, *a, **k))
    conditions = [noisy(7), None, noisy(8)]
    draw(pipe, conditions, guidance_scale=1.0, condition_strength=0.5)
    first = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    assert torch.equal(seen[0][:, :4], first) and torch.equal(seen[0][1, 4:], torch.zeros(4, 8, 8))
    for row in (0, 2):
        pixels = torch.from_numpy(np.array(conditions[row])).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            expected = 0.5 * pipe.vae.encode(pixels).latent_dist.mode()[0]
        assert torch.allclose(seen[0][row, 4:], expected, atol=1e-5)
        assert torch.equal(seen[0][:, 4:], seen[1][:, 4:])


def test_guidance_by_both(pipe, monkeypatch):
    """The official rule: none + s (all - image) + g (image - none); g = 1 saves the third prediction."""
    seen, forward, stepped, step = [], pipe.unet.forward, [], pipe.scheduler.step
    monkeypatch.setattr(pipe.unet, "forward", lambda *a, **k: seen.append(forward(*a, **k)) or seen[-1])
    monkeypatch.setattr(pipe.scheduler, "step", lambda v, *a, **k: stepped.append(v) or step(v, *a, **k))
    conditions = [noisy(7), noisy(8), noisy(9)]
    draw(pipe, conditions, guidance_scale=3.0, image_guidance_scale=1.5)
    none, image, all_ = seen[0].sample.chunk(3)
    assert torch.allclose(stepped[0], none + 3 * (all_ - image) + 1.5 * (image - none), atol=1e-4)
    seen.clear()
    stepped.clear()
    draw(pipe, conditions, guidance_scale=3.0)
    image, all_ = seen[0].sample.chunk(2)
    assert torch.allclose(stepped[0], image + 3 * (all_ - image), atol=1e-4)
    seen.clear()
    stepped.clear()
    draw(pipe, conditions, guidance_scale=1.0, image_guidance_scale=1.5)
    none, image, all_ = seen[0].sample.chunk(3)
    assert torch.allclose(stepped[0], all_ + 0.5 * (image - none), atol=1e-4)


def test_no_condition_is_zeros(pipe):
    """Bugs: None and strength 0 that differ; a batch whose pictures depend on each other's conditions."""
    nothing = draw(pipe)
    conditions = [noisy(7), None, noisy(8)]
    assert torch.allclose(draw(pipe, conditions, condition_strength=0.0), nothing, atol=1e-5)
    some = draw(pipe, conditions)
    assert torch.allclose(some[1], nothing[1], atol=1e-5) and not torch.allclose(some[0], nothing[0], atol=1e-2)
    assert torch.allclose(draw(pipe, conditions, batch_size=2), some, atol=1e-5)


def test_round_trip_of_the_second_stage(pipe, tmp_path):
    """Bug: an adapter of the second stage that is read as one of the first, or a pipeline that comes back narrower."""
    sdxl = copy.deepcopy(pipe.unet)
    sdxl.conv_in = torch.nn.Conv2d(4, sdxl.conv_in.out_channels, 3, padding=1)
    sdxl.register_to_config(in_channels=4)
    adapter = SDXLAdapterWithLatentImage(copy.deepcopy(pipe.unet), pipe.resampler, full_ft=True)
    adapter.save_pretrained(tmp_path / "adapter")
    read = read_adapter(tmp_path / "adapter", copy.deepcopy(sdxl))
    assert type(read) is SDXLAdapterWithLatentImage and read.unet.config.in_channels == 8
    assert torch.equal(read.unet.conv_in.weight, pipe.unet.conv_in.weight)
    SDXLAdapter(copy.deepcopy(sdxl), pipe.resampler).save_pretrained(tmp_path / "first")
    assert type(read_adapter(tmp_path / "first", sdxl)) is SDXLAdapter
    pipe.save_pretrained(tmp_path / "pipe")
    again = DetokenizerPipeline.from_pretrained(tmp_path / "pipe")
    again.set_progress_bar_config(disable=True)
    conditions = [noisy(7), noisy(8), None]
    assert again.takes_condition and torch.equal(draw(again, conditions), draw(pipe, conditions))


@pytest.mark.parametrize(
    ("conditions", "options", "error", "message"),
    [
        ([noisy(1), noisy(2)], {}, ValueError, "2 condition images for 3 pictures"),
        ([noisy(1), None, noisy(2, (64, 32))], {}, ValueError, "condition image 2 is 64x32 px, RGB; expected 32x32 px"),
        ([noisy(1), noisy(1, mode="L"), None], {}, ValueError, "condition image 1 is 32x32 px, L; expected .*convert"),
        ([noisy(1), "cat.jpg", None], {}, TypeError, "condition image 1 is a str, expected a PIL picture or None"),
        (noisy(1), {"condition_strength": 1.5}, ValueError, "condition_strength=1.5: expected 0 to 1"),
        (None, {"guidance_scale": float("nan")}, ValueError, "guidance_scale=nan: expected a number"),
        (None, {"num_inference_steps": True}, ValueError, "num_inference_steps=True: expected a whole number"),
        (None, {"num_inference_steps": 0}, ValueError, "num_inference_steps=0: expected a whole number, 1 or more"),
        (None, {"num_inference_steps": -3}, ValueError, "num_inference_steps=-3"),
    ],
)
def test_bad_input(pipe, conditions, options, error, message):
    with pytest.raises(error, match=message):
        draw(pipe, conditions, **options)


def test_a_unet_of_the_first_stage_takes_no_condition(detokenizer_parts):
    first = DetokenizerPipeline(**detokenizer_parts, vit_down=4)
    with pytest.raises(ValueError, match="takes no condition_images; leave them out"):
        first(PICTURES[0], condition_images=[PICTURES[0]])
