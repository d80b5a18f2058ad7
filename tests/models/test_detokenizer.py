import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from seedx_lite.models.detokenizer import (
    SDXLAdapter,
    SDXLAdapterWithLatentImage,
    condition,
    denoising_loss,
    noise_target,
    widen_conv_in,
)
from seedx_lite.models.resamplers import ResamplerXLV2
from seedx_lite.models.vit import pool_embeddings

TOKENS, POOLED, K = 16, 4, 12


def make_unet():
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=[8, 16],
        layers_per_block=1,
        attention_head_dim=[2, 2],
        cross_attention_dim=14,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=30,
        norm_num_groups=4,
    )


def make_adapter(cls=SDXLAdapter, unet=None, **kwargs):
    resampler = ResamplerXLV2(16, 1, 8, 2, 4, K, 8, 6, 2)
    return cls(unet or make_unet(), resampler, **kwargs).eval()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    return {"latents": torch.randn(4, 4, 8, 8), "image_embeds": torch.randn(4, POOLED, K), "time_ids": torch.ones(4, 6)}


def predict(adapter, batch, channels=4):
    torch.manual_seed(1)
    noisy = torch.randn(4, channels, 8, 8)
    with torch.no_grad():
        return adapter(noisy, torch.arange(4), batch["image_embeds"], batch["time_ids"])


def test_widening_keeps_the_function(batch):
    """The official surgery leaves the bias of conv_in random, so that training starts from a broken U-Net."""
    adapter = make_adapter()
    before = predict(adapter, batch)
    widen_conv_in(adapter.unet)
    torch.manual_seed(1)
    noisy = torch.cat([torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)], dim=1)
    with torch.no_grad():
        after = adapter(noisy, torch.arange(4), batch["image_embeds"], batch["time_ids"])
    assert torch.allclose(before, after, atol=1e-6)
    assert adapter.unet.config.in_channels == 8


def test_second_stage_starts_from_the_first():
    """Widening twice would leave 16 input channels."""
    first = make_adapter()
    second = SDXLAdapterWithLatentImage(first.unet, first.resampler, full_ft=True)
    again = SDXLAdapterWithLatentImage(second.unet, second.resampler)
    assert again.unet.conv_in.in_channels == 8
    assert {n for n in again.trained_names() if "conv_in" in n} == {"unet.conv_in.weight", "unet.conv_in.bias"}


def test_training_moves_keys_and_values_and_nothing_else_of_the_unet(batch):
    """The official code freezes to_k and to_v by accident: only the resampler would learn."""
    adapter = make_adapter()
    start = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in adapter.parameters() if p.requires_grad], lr=1.0)
    denoising_loss(adapter, **batch, scheduler=DDPMScheduler()).backward()
    optimizer.step()
    moved = {name for name, tensor in adapter.state_dict().items() if not torch.equal(tensor, start[name])}
    unet = {name for name in moved if name.startswith("unet.")}
    assert unet and all(name.split(".")[-2] in ("to_k", "to_v") for name in unet)
    assert any(".attn1." in name for name in unet) and any(".attn2." in name for name in unet)
    assert moved - unet


def test_pooling_of_both_branches():
    """Official reconstruction reads 256 tokens and generation 64: training saw only one of them."""
    zero, tokens = torch.randn(1, TOKENS, K), torch.randn(2, TOKENS, K)
    adapter = make_adapter()
    from_tokens = adapter.get_image_embeds(zero, image_tokens=tokens)
    from_embeds = adapter.get_image_embeds(
        zero, image_embeds=pool_embeddings(tokens, TOKENS // adapter.config["vit_down"])
    )
    for one, other in zip(from_tokens, from_embeds, strict=True):
        assert len(one) == 2 and torch.allclose(one, other, atol=1e-6)
    official = make_adapter(official=True)
    official.load_state_dict(adapter.state_dict())
    unpooled = official.get_image_embeds(zero, image_tokens=tokens)
    assert torch.allclose(unpooled.prompt_embeds, adapter.resampler(tokens)[0], atol=1e-6)
    assert not torch.allclose(unpooled.prompt_embeds, from_tokens.prompt_embeds, atol=1e-3)
    with pytest.raises(ValueError, match=rf"vit_down={TOKENS - 1} does not divide {TOKENS} tokens"):
        condition(adapter.resampler, zero, image_tokens=tokens, vit_down=TOKENS - 1)


def test_arguments_of_get_image_embeds():
    """Both or neither given: one of them would be ignored in silence."""
    adapter, zero = make_adapter(vit_down=3), torch.zeros(1, TOKENS, K)
    for arguments in ({}, {"image_embeds": zero, "image_tokens": zero}):
        with pytest.raises(ValueError, match="and not both"):
            adapter.get_image_embeds(zero, **arguments)
    with pytest.raises(ValueError, match="vit_down=3 does not divide 16 tokens"):
        adapter.get_image_embeds(zero, image_tokens=zero)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_target_follows_the_scheduler(kind, batch):
    """A U-Net of one kind trained towards the other draws noise."""
    scheduler = DDPMScheduler(prediction_type=kind)
    latents, noise, time = batch["latents"], torch.randn(4, 4, 8, 8), torch.full((4,), 600)
    share = scheduler.alphas_cumprod[600]
    wanted = noise if kind == "epsilon" else share.sqrt() * noise - (1 - share).sqrt() * latents
    assert torch.allclose(noise_target(scheduler, latents, noise, time), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="'sample', expected epsilon or v_prediction"):
        noise_target(DDPMScheduler(prediction_type="sample"), latents, noise, time)


def test_loss_depends_on_the_generator_alone(batch):
    """An exact resume needs the same draws from the same generator, whatever was drawn elsewhere."""
    adapter, scheduler, zero = make_adapter(), DDPMScheduler(), torch.randn(1, POOLED, K)

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        return denoising_loss(adapter, **batch, scheduler=scheduler, generator=generator, zero_embeds=zero)

    first = loss(0)
    torch.rand(1)
    assert torch.equal(first, loss(0)) and not torch.equal(first, loss(1))


def test_dropped_embeddings_become_those_of_the_zero_picture(batch):
    """Zeros in their place would be an input that inference never uses."""
    seen, zero = [], torch.randn(1, POOLED, K)

    def spy(noisy, timesteps, image_embeds, time_ids):
        seen.append(image_embeds)
        return make_adapter()(noisy, timesteps, image_embeds, time_ids)

    for drop in (0.0, 1.0):
        denoising_loss(spy, **batch, scheduler=DDPMScheduler(), zero_embeds=zero, drop=drop)
    assert torch.equal(seen[0], batch["image_embeds"]) and torch.equal(seen[1], zero.expand(4, -1, -1))
    with pytest.raises(ValueError, match="pool both to the same N"):
        denoising_loss(spy, **batch, scheduler=DDPMScheduler(), zero_embeds=torch.zeros(1, TOKENS, K))


def test_weights_say_where_an_error_counts(batch):
    """Bug: weights that are broadcast over the wrong axis, or dropped on the way."""
    adapter, zeros = make_adapter(), torch.zeros(4, 1, 8, 8)

    def loss(weights=None):
        generator = torch.Generator().manual_seed(5)
        return denoising_loss(adapter, **batch, scheduler=DDPMScheduler(), generator=generator, weights=weights).item()

    left, right = zeros.clone(), zeros.clone()
    left[..., :4], right[..., 4:] = 1, 1
    assert loss(zeros) == 0 and loss(zeros + 1) == pytest.approx(loss())
    assert loss(left) + loss(right) == pytest.approx(loss()) and loss(left) > 0 < loss(right)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_loss_of_the_latents_that_a_prediction_implies(kind, batch):
    """Bugs: a factor of the other kind of prediction, or one that depends on the time after all."""
    scheduler, missed = DDPMScheduler(prediction_type=kind), 0.3

    def off(noisy, timesteps, image_embeds, time_ids):
        share = scheduler.alphas_cumprod[timesteps][:, None, None, None]
        wrong = batch["latents"] + missed
        noise = (noisy - share.sqrt() * wrong) / (1 - share).sqrt()
        return noise if kind == "epsilon" else share.sqrt() * noise - (1 - share).sqrt() * wrong

    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        loss = denoising_loss(off, **batch, scheduler=scheduler, generator=generator, of_latents=True)
        assert loss.item() == pytest.approx(missed**2, rel=1e-3)


def test_condition_latents_are_not_scaled(batch):
    """Released weights expect the raw mode of the VAE; the noisy latents are scaled."""
    vae = AutoencoderKL(block_out_channels=[4], norm_num_groups=2, scaling_factor=0.1).eval()
    pixels = torch.rand(4, 3, 8, 8) * 2 - 1
    condition = SDXLAdapterWithLatentImage.condition_latents(vae, pixels)
    assert torch.equal(condition, vae.encode(pixels).latent_dist.mean)
    adapter = make_adapter(SDXLAdapterWithLatentImage)
    assert denoising_loss(adapter, **batch, scheduler=DDPMScheduler(), condition=condition).isfinite()


@pytest.mark.parametrize("cls", [SDXLAdapter, SDXLAdapterWithLatentImage])
@pytest.mark.parametrize("full_ft", [False, True])
def test_round_trip(cls, full_ft, tmp_path, batch):
    """A checkpoint holds what was trained; the rest comes from the base, also one in 16 bits."""
    make_unet().half().save_pretrained(tmp_path / "sdxl" / "unet")
    base = UNet2DConditionModel.from_pretrained(tmp_path / "sdxl" / "unet", dtype=torch.float32)
    adapter = make_adapter(cls, base, full_ft=full_ft)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapter.save_pretrained(tmp_path / "adapter")
    assert sorted(load_file(tmp_path / "adapter" / "model.safetensors")) == adapter.trained_names()
    again = cls.from_pretrained(tmp_path / "adapter", tmp_path / "sdxl")
    assert again.config == adapter.config and again.trained_names() == adapter.trained_names()
    channels = adapter.unet.conv_in.in_channels
    assert torch.equal(predict(adapter, batch, channels), predict(again, batch, channels))


def test_checkpoint_of_another_base(tmp_path):
    """Keys that do not fit would be dropped with a print by the official loader."""
    make_adapter().save_pretrained(tmp_path)
    other = make_unet()
    other.register_to_config(cross_attention_dim=20)
    with pytest.raises(ValueError, match=r"of another shape: .*attn2\.to_k\.weight \[16, 14\] instead of \[16, 20\]"):
        SDXLAdapter.from_pretrained(tmp_path, UNet2DConditionModel.from_config(other.config))
    with pytest.raises(FileNotFoundError, match=r"unet/config\.json is missing"):
        SDXLAdapter.from_pretrained(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="describes SDXLAdapter, expected SDXLAdapterWithLatentImage"):
        SDXLAdapterWithLatentImage.from_pretrained(tmp_path, make_unet())
