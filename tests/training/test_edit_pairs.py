"""What stage 2 of the de-tokenizer is trained on."""

from types import SimpleNamespace

import pytest
import torch

from seedx_lite.data.drawn import EMPHASIS, draw_edits
from seedx_lite.models.autoencoder import encode_pictures
from seedx_lite.presets import load_preset
from seedx_lite.training.detokenizer import EDITS, EditPairs, Parts, validation_loss

SMOKE = load_preset("smoke", ["data.train_scenes=12"])


@pytest.fixture(scope="module")
def pairs(detokenizer_parts, tmp_path_factory):
    vit, vae, scheduler = (detokenizer_parts[name] for name in ("vit", "vae", "scheduler"))
    return EditPairs(
        SMOKE, Parts(vit, vae, scheduler, "vit", "vae"), SMOKE.n_embeddings, tmp_path_factory.mktemp("runs")
    )


def test_some_are_plain_and_most_show_the_other_side_of_an_edit(pairs, detokenizer_parts):
    """Bugs: a condition that is the target itself, of another scene, or scaled like the noisy latents."""
    batch, edits = pairs.batch(8, torch.Generator().manual_seed(0)), round(EDITS * 8)
    assert not batch["condition"][:-edits].any() and batch["condition"][-edits:].flatten(1).any(1).all()
    drawn = draw_edits("train", 12, "narrow", SMOKE.size)
    vae = detokenizer_parts["vae"]
    before, after = (encode_pictures(vae, pictures) for pictures in (drawn.source, drawn.target))

    def nearest(latents, known):
        return (latents[:, None] - known).flatten(2).norm(dim=-1).argmin(1)

    both = torch.cat([before, after])
    drawn_side = nearest(batch["latents"][-edits:], both)
    shown_side = nearest(batch["condition"][-edits:] * vae.config.scaling_factor, both)
    assert torch.equal((drawn_side - shown_side).abs(), torch.full((edits,), 12))  # the same edit, the other side


def test_processes_share_the_edits_of_a_step(pairs, monkeypatch):
    """Bug: of two processes with two samples each, neither has a picture that is no edit."""
    counts = []
    for rank in range(2):
        team = SimpleNamespace(process_index=rank, num_processes=2)
        monkeypatch.setattr("seedx_lite.training.detokenizer.processes", lambda team=team: team)
        condition = pairs.batch(2, torch.Generator().manual_seed(0))["condition"]
        counts.append(int(condition.flatten(1).any(1).sum()))
    assert counts == [1, 2] and sum(counts) == EDITS * 4


def test_what_an_edit_leaves_alone_counts_more(pairs):
    """Bug: the mask turned round, so that the loss dwells on what the embeddings tell anyway."""
    outside = torch.tensor(draw_edits("train", 12, "narrow", SMOKE.size).outside, dtype=torch.float32)[:, None]
    share = torch.nn.functional.adaptive_avg_pool2d(outside, pairs.edit_weights.shape[-1])
    ratio = pairs.edit_weights[share == 1].mean() / pairs.edit_weights[share == 0].mean()
    assert ratio.item() == pytest.approx(EMPHASIS, rel=1e-4)
    assert pairs.edit_weights.mean().item() == pytest.approx(1, abs=1e-5)


def test_the_loss_is_that_of_the_latents(pairs):
    """Bug: validation, by which rates are chosen, by another loss than training."""

    def no_noise(noisy, timesteps, image_embeds, time_ids):  # implies latents √ᾱ · noisy, whatever was asked
        return torch.zeros_like(noisy[:, :4])

    low = validation_loss(no_noise, pairs, batches=8)
    pairs.of_latents = False
    assert 0 < low < validation_loss(no_noise, pairs, batches=8)
    del pairs.of_latents
