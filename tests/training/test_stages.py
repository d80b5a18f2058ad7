"""What the stages optimise, in closed form, and that their results open in the plain libraries."""

import json
import math

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from seedx_lite.artifacts import read_manifest, ship
from seedx_lite.data.drawn import cell_owners, draw_scenes, scenes, thing_weights
from seedx_lite.models.autoencoder import encode_pictures
from seedx_lite.models.vit import (
    VisionTransformerWithAttnPool,
    embed_pictures,
    normalise,
    pool_embeddings,
    pooled_boxes,
)
from seedx_lite.presets import load_preset
from seedx_lite.training import foundations
from seedx_lite.training.foundations import _TextToImage, noise_schedule, sdxl, train_vae, training_scenes
from seedx_lite.training.loop import TrainingRecord
from seedx_lite.training.text import new_text_encoders
from seedx_lite.training.vit import CLASSES, dense_losses, vit
from seedx_lite.world.scene import COLOURS, KINDS

SMOKE = load_preset("smoke", ["data.train_scenes=12"])


def test_things_count_four_times():
    """Bug: weights that change the size of the loss, or emphasise the background."""
    kind = torch.tensor([0, 0, 1, 5])
    weights = thing_weights(kind)
    assert weights.mean() == pytest.approx(1) and (weights[3] / weights[0]).item() == pytest.approx(4)


def perfect_reading(drawn):
    """The batch of `dense_losses` for drawn scenes, and what a reader without error would say."""
    batch = {name: torch.tensor(getattr(drawn, name)) for name in (*CLASSES, "box")}
    batch["pixels"] = torch.rand(*drawn.kind.shape, 12)
    told = {name: 60.0 * torch.eye(len(names))[batch[name].long()] for name, names in CLASSES.items()}
    steps = (torch.arange(16) + 0.5) / 16
    place = torch.stack([steps.repeat_interleave(16), steps.repeat(16)], dim=-1).expand(len(drawn.kind), -1, -1)
    return batch, told | {"box": batch["box"], "pixels": batch["pixels"], "place": place}


def test_dense_losses_vanish_for_a_perfect_reader_alone():
    """Bugs: rows and columns swapped, classes shifted, boxes asked for where no thing is."""
    drawn = draw_scenes("train", 6)
    batch, told = perfect_reading(drawn)
    assert sum(dense_losses(told, batch).values()).item() == pytest.approx(0, abs=1e-5)
    for name in told:
        wrong = told[name].flip(-1) if name == "place" else told[name].roll(1, dims=1)
        assert dense_losses(told | {name: wrong}, batch)[name] > 0.01, name
    nowhere = told["box"] + 9 * (batch["kind"] < 2)[..., None]
    assert dense_losses(told | {"box": nowhere}, batch)["box"] == 0


def test_places_are_those_of_the_cells():
    """Bugs: the error of another grid than the layer's, of queries of the step before, or with rows and columns
    swapped; a U-Net that keeps what was noted."""
    torch.manual_seed(0)
    tokenizer, first, second = new_text_encoders(SMOKE)
    model = _TextToImage(UNet2DConditionModel(**SMOKE.unet_kwargs), first, second).eval()
    tokens = tokenizer(["a red cat"] * 2, padding="max_length", return_tensors="pt").input_ids
    rest = torch.tensor([3, 5]), tokens, torch.ones(2), torch.zeros(1, 6)
    one, other, seen = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), []
    with torch.no_grad():
        for noisy in (one, other, one):
            assert model(noisy, *rest).shape == (2, 4, 8, 8)
            seen.append(model.place_error().item())
    assert seen[0] == seen[2] != seen[1]
    assert {math.isqrt(layer.to_q.latest.shape[1]) for layer in model.layers} == {8, 4}
    for layer, reader in zip(model.layers, model.readers, strict=True):  # queries that are row, column and zeros
        width, axis = layer.to_q.out_features, torch.linspace(-1, 1, math.isqrt(layer.to_q.latest.shape[1]))
        places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1)
        layer.to_q.latest = F.pad(places, (0, width - 2))[None]
        reader.weight.data = torch.eye(2, width)
        nn.init.zeros_(reader.bias)
    assert model.place_error().item() == pytest.approx(0, abs=1e-6)
    reader.weight.data = reader.weight.data.flip(0)
    assert model.place_error() > 0.1 / len(model.layers)
    model.forget()
    assert not any(hasattr(part, "latest") or part._forward_hooks for part in model.unet.modules())


def test_heads_learn_to_look_at_the_words_on_a_thing():
    """Bug: a cell is told to look at the words on another thing, or dropped captions are asked, too."""
    _, first, second = new_text_encoders(SMOKE)
    model = _TextToImage(UNet2DConditionModel(**SMOKE.unet_kwargs), first, second)
    owners = torch.zeros(1, 16, 16, dtype=torch.uint8)
    owners[0, :, :8], owners[0, :, 8:12] = 2, 1  # left half the second thing, beside it the first, the rest nothing
    words, (layer, *_) = torch.tensor([[5, 9, -1]]), model.layers
    queries, keys = torch.zeros(1, 64, layer.to_q.out_features), torch.zeros(1, 80, layer.to_q.out_features)
    left = (torch.arange(64) % 8) < 4
    queries[0, left, 0], queries[0, ~left, 1], keys[0, 9, 0], keys[0, 5, 1] = 99, 99, 99, 99
    layer.to_q.latest, layer.to_k.latest, model.layers = queries, keys, [layer]
    assert model.word_error(owners, words, torch.ones(1)) < 1e-3
    assert model.word_error(owners, words[:, [1, 0, 2]], torch.ones(1)) > 10
    assert model.word_error(owners, words, torch.zeros(1)) == 0
    keys.zero_()
    assert model.word_error(owners, words, torch.ones(1)) == pytest.approx(math.log(80))


def test_owners_of_cells_are_the_things_drawn_there():
    chosen = scenes("train", 30, "broad")
    drawn = draw_scenes("train", 30, "broad")
    for owners, kind, colour, scene in zip(cell_owners(drawn, chosen), drawn.kind, drawn.colour, chosen, strict=True):
        assert np.array_equal(owners > 0, kind >= 2) and set(owners) == set(range(len(scene.things) + 1))
        for number, thing in enumerate(scene.things, 1):
            assert set(kind[owners == number]) == {2 + KINDS.index(thing.kind)}
            assert set(colour[owners == number]) == {1 + COLOURS.index(thing.colour)}


def test_pooled_tokens_on_one_thing_are_asked_for_its_box():
    """Bug: a token half on a thing is told a mean of that thing's box and of nothing."""
    things = torch.tensor([[False, True, True, True, True, True, False, False]])
    boxes = torch.zeros(1, 8, 4)
    boxes[0, 1:4], boxes[0, 4], boxes[0, 5] = torch.tensor([[0.5]]), 0.2, 0.7
    told, alone = pooled_boxes(things, boxes, 4)  # runs of two
    assert alone.tolist() == [[True, True, False, False]]
    assert told[0, :2].tolist() == [[0.5] * 4] * 2


def test_latents_have_deviation_one(tmp_path):
    """Bug: a scaling factor of other latents; noise of another size than the picture's."""
    data = training_scenes(SMOKE, "broad", tmp_path)
    assert data.weights.shape == (12, 1, 8, 8)
    vae = train_vae(SMOKE, 0, tmp_path / "vae", data)
    assert encode_pictures(vae, data.pictures).std().item() == pytest.approx(1, abs=1e-3)


def test_embeddings_in_batches(tmp_path):
    """Bugs: the last batch forgotten; pictures of another size stretched in silence."""
    tower = VisionTransformerWithAttnPool(**vars(SMOKE.vit)).eval()
    pictures = draw_scenes("train", 5, size=(32, 32)).pictures
    made = embed_pictures(tower, pictures, 64, torch.float16, batch=2)
    with torch.no_grad():
        expected = pool_embeddings(tower(normalise(pictures)), 64)
    assert made.dtype == torch.float16 and torch.allclose(made.float(), expected, atol=2e-3)
    with pytest.raises(ValueError, match=r"pictures of \(64, 64\) px, the ViT reads 32"):
        embed_pictures(tower, draw_scenes("train", 1).pictures)


def test_second_phases_see_more_scenes(tmp_path, monkeypatch):
    """Bugs: a first phase that sees what is kept for the second, a second that does not; a forgotten lesson."""
    preset = load_preset("smoke", ["data.train_scenes=4", "data.second_scenes=12"])
    text, scheduler = new_text_encoders(preset), DDIMScheduler(**noise_schedule(preset))
    data = training_scenes(preset, "broad", tmp_path, preset.data.second)
    vae = AutoencoderKL(**preset.vae.kwargs).eval()
    latents, seen = encode_pictures(vae, data.pictures), []

    def watched(model, batch_at, loss_of, config, folder, **about):
        batches = [batch_at(step, 4, torch.Generator().manual_seed(step)) for step in range(20)]
        same = [(batch["latents"][:, None] == latents).flatten(2).all(-1).nonzero()[:, 1] for batch in batches]
        logs = loss_of(model, send_to_device(batches[0], "cpu"), torch.Generator())[1]
        seen.append((set(torch.cat(same).tolist()), set(logs)))
        return TrainingRecord("", 0, {}, {}, {}, "", "")

    monkeypatch.setattr(foundations, "train", watched)
    foundations.train_unet(preset, 0, tmp_path / "unet", data, vae, text, scheduler)
    assert seen[0] == (set(range(4)), {"plain", "places"}) and seen[1] == (set(range(12)), {"plain", "places", "words"})


def test_a_killed_second_phase_goes_on(tmp_path, monkeypatch):
    """Bugs: a first phase that is trained again, a second that begins anew, pictures of the way that are lost."""
    often = load_preset("smoke", ["data.train_scenes=12", "training.sdxl_words.checkpoint_seconds=0"])
    draw, drawn = foundations.draw_captions, []

    def until_the_fifth(*args, **kwargs):
        drawn.append(1)
        if len(drawn) == 5:  # after three steps of six
            raise KeyboardInterrupt
        return draw(*args, **kwargs)

    monkeypatch.setattr(foundations, "draw_captions", until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        sdxl(often, runs=tmp_path / "killed")
    killed = sdxl(often, runs=tmp_path / "killed")
    monkeypatch.undo()
    straight = sdxl(often, runs=tmp_path / "straight")
    assert read_manifest(killed)["id"] == read_manifest(straight)["id"]


def test_the_vit_goes_on_with_frozen_text_encoders(tmp_path):
    """Bugs: text encoders that go on learning, a second phase without its own loss."""
    dense = [f"training.vit_dense.{entry}" for entry in ("steps=3", "batch_size=4", "learning_rate=0.01")]
    short = ["data.train_scenes=4", "data.second_scenes=12"]
    once, twice = (
        vit(load_preset("smoke", [*short, *more, f"name=with{len(more)}"]), runs=tmp_path) for more in ([], dense)
    )
    told = json.loads((twice / "training.json").read_text())
    assert told["config"]["steps"] == 3 and "pooled_box" in told["history"][-1]
    assert json.loads((twice / "joint" / "training.json").read_text())["title"] == "ViT and text encoders"
    for part, same in (("text_encoder", True), ("text_encoder_2", True), (".", False), ("heads", False)):
        one, other = (load_file(folder / part / "model.safetensors") for folder in (once, twice))
        assert all(torch.equal(one[name], other[name]) for name in one) == same, part


def test_the_shipped_foundation_opens_in_plain_diffusers(tmp_path):
    """Bug: parts in two dtypes, or an odd end token, that only our own loader forgives."""
    trained = sdxl(SMOKE, runs=tmp_path / "runs")
    told = [json.loads((trained / "unet" / part / "training.json").read_text())["title"] for part in ("things", ".")]
    assert told == ["text-to-image U-Net", "text-to-image U-Net, words"]
    looks = {int(file.stem.split("-")[1]) for file in (trained / "unet").glob("progress-*.jpg")}
    assert {1, 3, 6, 7, 9, 12} <= looks  # of both phases
    (folder,) = ship("smoke", ["sdxl"], runs=tmp_path / "runs", shipped=tmp_path / "shipped")
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)} == {torch.float32}
    assert not any(module._forward_hooks for module in pipe.unet.modules())
    (image,) = pipe("a red cat on grass by day", num_inference_steps=2, guidance_scale=4.0).images
    assert image.size == (32, 32)
