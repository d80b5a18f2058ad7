"""What the stages optimise, in closed form, and that their results open in the plain libraries."""

import math

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn

from seedx_lite.artifacts import ship
from seedx_lite.data.drawn import cell_owners, draw_scenes, scenes, thing_weights
from seedx_lite.models.autoencoder import encode_pictures
from seedx_lite.models.vit import VisionTransformerWithAttnPool, embed_pictures, normalise, pool_embeddings
from seedx_lite.presets import load_preset
from seedx_lite.training.foundations import _TextToImage, sdxl, train_vae, training_scenes
from seedx_lite.training.text import new_text_encoders
from seedx_lite.training.vit import CLASSES, dense_losses, pooled_boxes
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
    """Bug: the error of another grid than the layer's, or of queries of the step before."""
    torch.manual_seed(0)
    tokenizer, first, second = new_text_encoders(SMOKE)
    model = _TextToImage(UNet2DConditionModel(**SMOKE.unet_kwargs), first, second).eval()
    for reader in model.readers:
        nn.init.zeros_(reader.weight)
        nn.init.zeros_(reader.bias)
    tokens = tokenizer(["a red cat"] * 2, padding="max_length", return_tensors="pt").input_ids
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 5]), tokens, torch.ones(2), torch.zeros(1, 6)
    grids = [8, 8, 8, 8, 4, 4, 4]  # layers of the smoke U-Net by the grid of their queries

    def error(grid):
        return np.square(np.linspace(-1, 1, grid)).mean()

    seen = []
    for _ in range(2):
        with torch.no_grad():
            sample = model(*inputs)
            seen.append(model.place_error().item())
        found = sorted((math.isqrt(read.shape[1]) for read in model._queries), reverse=True)
    assert sample.shape == (2, 4, 8, 8) and seen[0] == seen[1]
    assert seen[0] == pytest.approx(np.mean([error(grid) for grid in found]), rel=1e-5) and set(found) == set(grids)


def test_heads_learn_to_look_at_the_words_on_a_thing():
    """Bug: a cell is told to look at the words on another thing, or dropped captions are asked, too."""
    _, first, second = new_text_encoders(SMOKE)
    model = _TextToImage(UNet2DConditionModel(**SMOKE.unet_kwargs), first, second)
    owners = torch.zeros(1, 16, 16, dtype=torch.uint8)
    owners[0, :, :8], owners[0, :, 8:12] = 2, 1  # left half the second thing, beside it the first, the rest nothing
    words, width = torch.tensor([[5, 9, -1]]), model.widths[0]
    queries, keys = torch.zeros(1, 64, 2 * width), torch.zeros(1, 80, 2 * width)
    left = (torch.arange(64) % 8) < 4
    queries[0, left, 0], queries[0, ~left, 1], keys[0, 9, 0], keys[0, 5, 1] = 99, 99, 99, 99
    model._queries, model._keys, model.widths = [queries], [keys], [width]
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


def test_the_shipped_foundation_opens_in_plain_diffusers(tmp_path):
    """Bug: parts in two dtypes, or an odd end token, that only our own loader forgives."""
    sdxl(SMOKE, runs=tmp_path / "runs")
    (folder,) = ship("smoke", ["sdxl"], runs=tmp_path / "runs", shipped=tmp_path / "shipped")
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)} == {torch.float32}
    assert not any(module._forward_hooks for module in pipe.unet.modules())
    (image,) = pipe("a red cat on grass by day", num_inference_steps=2, guidance_scale=4.0).images
    assert image.size == (32, 32)
