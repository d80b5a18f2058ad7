"""The de-tokenizer as a pipeline: what goes in, what comes out, and that nothing else changes it."""

import json

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image

from seedx_lite.models.detokenizer import SDXLAdapter
from seedx_lite.models.vit import pool_embeddings
from seedx_lite.pipelines.detokenizer import DetokenizerPipeline

STEPS = 3


@pytest.fixture(scope="module")
def pipe(detokenizer_parts):
    """A pipeline of untrained parts, that reads 64 of 256 embeddings."""
    made = DetokenizerPipeline(**detokenizer_parts, vit_down=4)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pictures():
    """Three noisy pictures of other sizes than the encoder's."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20 + 9 * k, 40, 3), dtype=np.uint8)) for k in range(3)]


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe, given, *seeds, **kwargs):
    """Latents [B, 4, h, w] with a generator for each picture."""
    kwargs = {"num_inference_steps": STEPS, "output_type": "latent", "generator": seeded(*seeds)} | kwargs
    return pipe(given, **kwargs).images


def test_a_batch_is_its_pictures_one_by_one(pipe, pictures):
    """Bug: noise drawn for a whole batch, so that a picture depends on its neighbours and on batch_size."""
    together = draw(pipe, pictures, 1, 2, 3)
    alone = torch.cat([draw(pipe, picture, seed) for picture, seed in zip(pictures, (1, 2, 3), strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, draw(pipe, pictures, 1, 2, 3, batch_size=2), atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_one_generator_serves_all_in_turn(pipe, pictures):
    """Bug: one generator in another batch size gives other pictures, or the same noise to each of them."""
    one, two = (draw(pipe, pictures, generator=seeded(5)[0], batch_size=size) for size in (3, 1))
    assert torch.allclose(one, two, atol=1e-5)
    same = draw(pipe, [pictures[0]] * 2, generator=seeded(5)[0])
    assert not torch.allclose(same[0], same[1], atol=1e-2)
    torch.manual_seed(5)
    assert torch.equal(draw(pipe, pictures, generator=None), one), "without one, torch's own"


def test_embeddings_and_pictures_are_the_same_way(pipe, pictures):
    """Bug: pictures skip the pooling that embeddings had, as in the released code."""
    with torch.no_grad():
        tokens = pipe.vit(pipe.vit.preprocess(pictures))  # [B, T, D]
    from_pictures = draw(pipe, pictures, 1, 2, 3)
    assert torch.allclose(draw(pipe, tokens, 1, 2, 3), from_pictures, atol=1e-5)
    assert torch.allclose(draw(pipe, pool_embeddings(tokens, 64), 1, 2, 3), from_pictures, atol=1e-5)


def test_official_pictures_skip_the_pooling(pipe, pictures):
    """Bug: the switch for the released behaviour is stored but not used."""
    official = DetokenizerPipeline(**pipe.components, vit_down=4, official=True)
    official.set_progress_bar_config(disable=True)
    assert not torch.allclose(draw(official, pictures, 1, 2, 3), draw(pipe, pictures, 1, 2, 3), atol=1e-3)


def test_guidance(pipe, pictures, monkeypatch):
    """Bugs: guidance 1 pays for a negative pass; guidance leaves out the zero picture or has the wrong sign."""
    seen, forward = [], pipe.unet.forward

    def spy(sample, *args, **kwargs):
        seen.append((len(sample), forward(sample, *args, **kwargs)))
        return seen[-1][1]

    monkeypatch.setattr(pipe.unet, "forward", spy)
    draw(pipe, pictures, 1, 2, 3, guidance_scale=1.0)
    assert [size for size, _ in seen] == [3] * STEPS
    plain = seen[0][1].sample
    seen.clear()
    stepped, step = [], pipe.scheduler.step
    monkeypatch.setattr(pipe.scheduler, "step", lambda v, *a, **k: stepped.append(v) or step(v, *a, **k))
    draw(pipe, pictures, 1, 2, 3, guidance_scale=3.0)
    assert [size for size, _ in seen] == [6] * STEPS
    without, with_ = seen[0][1].sample.chunk(2)
    assert torch.allclose(with_, plain, atol=1e-5)
    assert torch.allclose(stepped[0], without + 3 * (plain - without), atol=1e-4)
    zero = pipe.vit.zero_embeddings().detach()
    seen.clear()
    draw(pipe, zero, 1, guidance_scale=3.0)
    without, with_ = seen[0][1].sample.chunk(2)
    assert torch.allclose(without, with_, atol=1e-5), "guidance starts from the zero picture"


def test_outputs(pipe, pictures):
    """Bug: pictures in the range of the VAE, or channels last where they should be first."""
    size = (pipe.image_size, pipe.image_size)
    images = pipe(pictures, STEPS, generator=seeded(1, 2, 3)).images
    assert [image.size for image in images] == [size] * 3 and images[0].mode == "RGB"
    tensor = pipe(pictures, STEPS, generator=seeded(1, 2, 3), output_type="pt").images
    assert tensor.shape == (3, 3, *size) and tensor.min() >= 0 and tensor.max() <= 1
    assert np.array_equal(np.asarray(images[0]), (tensor[0].permute(1, 2, 0) * 255).round().byte())
    (array,) = pipe(pictures, STEPS, generator=seeded(1, 2, 3), output_type="np", return_dict=False)
    assert np.allclose(array, tensor.permute(0, 2, 3, 1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_picture_modes(pipe, mode):
    """Bug: a picture that is not RGB stops the vision encoder."""
    assert len(pipe(Image.new(mode, (7, 90)), 1).images) == 1


def test_round_trip(pipe, pictures, tmp_path):
    """Bugs: parts of other classes left out by diffusers; a `vit_down` or scheduler that falls back to a default."""
    other = DetokenizerPipeline(**pipe.components, vit_down=16)
    for saved in (pipe, other):
        saved.set_progress_bar_config(disable=True)
        saved.save_pretrained(tmp_path)
        loaded = DetokenizerPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(draw(loaded, pictures, 1, 2, 3), draw(saved, pictures, 1, 2, 3))
    assert loaded.config.vit_down == 16 and loaded.scheduler.config.prediction_type == "v_prediction"
    assert not list(tmp_path.rglob("*.bin"))
    index = tmp_path / "model_index.json"
    told = index.read_text()
    for broken in (told[:20], told.replace("vit_down", "vit_up"), told.replace("DetokenizerPipeline", "Other"), "[]"):
        index.write_text(broken)
        with pytest.raises(ValueError, match=r"model_index\.json: .*; give a folder that DetokenizerPipeline"):
            DetokenizerPipeline.from_pretrained(tmp_path)
    index.write_text(told)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match=r"scheduler_config\.json is missing"):
        DetokenizerPipeline.from_pretrained(tmp_path)


def test_from_artifacts(pipe, pictures, tmp_path):
    """Bug: the pipeline of the stages' folders is not that of the parts that were trained."""
    adapter = SDXLAdapter(pipe.unet, pipe.resampler, vit_down=4)
    pipe.vit.save_pretrained(tmp_path / "vit")
    adapter.save_pretrained(tmp_path / "adapter")
    for name in ("vae", "unet", "scheduler"):
        getattr(pipe, name).save_pretrained(tmp_path / "sdxl" / name)
    made = DetokenizerPipeline.from_artifacts(*(tmp_path / name for name in ("vit", "sdxl", "adapter")))
    made.set_progress_bar_config(disable=True)
    assert torch.equal(draw(made, pictures, 1, 2, 3), draw(pipe, pictures, 1, 2, 3))
    for name, upstream in {"vit": {}, "sdxl": {"vit": "vit"}, "adapter": {"vit": "another", "sdxl": "sdxl"}}.items():
        about = {"stage": name, "id": name, "upstream": upstream, "files": {}}
        (tmp_path / name / "artifact.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"adapter was built on another vit \(another, given vit\)"):
        DetokenizerPipeline.from_artifacts(*(tmp_path / name for name in ("vit", "sdxl", "adapter")))


def test_sampling_leaves_the_parts_as_they_are(pipe, pictures):
    """Bug: a look at samples during training freezes what is being trained."""
    parameters = [*pipe.unet.parameters(), *pipe.resampler.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    draw(pipe, pictures, 1, 2, 3)
    assert all(parameter.requires_grad for parameter in parameters)


def test_other_schedulers(pipe, pictures):
    """Bug: a scheduler that scales its input, or adds noise on its way, works in batches of one only."""
    other = DetokenizerPipeline(**pipe.components, vit_down=4)
    other.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    other.set_progress_bar_config(disable=True)
    together, alone = draw(other, pictures, 1, 2, 3), draw(other, pictures[1], 2)
    assert torch.allclose(together[1], alone[0], atol=1e-4)


def test_progress(pipe, pictures, capfd):
    """Bug: a bar of steps that does not count the batches."""
    pipe.set_progress_bar_config(disable=False)
    draw(pipe, pictures, 1, 2, 3, batch_size=2)
    assert f"{2 * STEPS}/{2 * STEPS}" in capfd.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    draw(pipe, pictures, 1, 2, 3)
    assert not capfd.readouterr().err


def test_half_precision(pipe, pictures, tmp_path):
    """Bugs: `to` of diffusers asks every part for a dtype that ours do not tell; parts in different dtypes."""
    pipe.save_pretrained(tmp_path)
    half = DetokenizerPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16).to("cpu")
    half.set_progress_bar_config(disable=True)
    assert half.dtype == torch.bfloat16 and half.device.type == "cpu"
    assert draw(half, pictures, 1, 2, 3).dtype == torch.bfloat16
    assert half.to(torch.float32).vit.proj.dtype == torch.float32


ERRORS = {
    "empty list": ([], {}, ValueError, "empty list.*at least one"),
    "array": (np.zeros((8, 8, 3)), {}, TypeError, "ndarray.*expected a PIL picture"),
    "mixed list": ([Image.new("RGB", (8, 8)), "x.png"], {}, TypeError, "'str'.*expected a PIL picture"),
    "width": (torch.zeros(2, 64, 31), {}, ValueError, r"\[2, 64, 31\].*\[B, 64, 32\]"),
    "count": (torch.zeros(2, 32, 32), {}, ValueError, r"\[2, 32, 32\].*\[B, 64, 32\].*\[B, 256, 32\]"),
    "axes": (torch.zeros(64, 32), {}, ValueError, r"\[64, 32\]"),
    "no embeddings": (torch.zeros(0, 64, 32), {}, ValueError, "B at least 1"),
    "zero steps": (torch.zeros(1, 64, 32), {"num_inference_steps": 0}, ValueError, "num_inference_steps=0.*1 or more"),
    "negative steps": (torch.zeros(1, 64, 32), {"num_inference_steps": -3}, ValueError, "1 or more"),
    "batch size": (torch.zeros(1, 64, 32), {"batch_size": 0}, ValueError, "batch_size=0"),
    "output type": (torch.zeros(1, 64, 32), {"output_type": "jpg"}, ValueError, "'jpg'.*pil, np, pt, latent"),
    "generators": (torch.zeros(3, 64, 32), {"generator": seeded(1, 2)}, ValueError, "2 generators for 3 pictures"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(pipe, case):
    """Bug: wrong input fails deep inside torch, in words about matrices."""
    given, kwargs, kind, words = ERRORS[case]
    with pytest.raises(kind, match=words):
        pipe(given, **kwargs)


def test_wrong_folder(pipe, tmp_path):
    """Bug: the folder of another pipeline fails with a key that nobody has heard of."""
    with pytest.raises(FileNotFoundError, match=r"model_index\.json is missing"):
        DetokenizerPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(ValueError, match="StableDiffusionXLPipeline, expected DetokenizerPipeline"):
        DetokenizerPipeline.from_pretrained(tmp_path)
