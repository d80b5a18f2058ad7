import pytest
import torch

from seedx_lite.models.resamplers import DeepResampler, Resampler, ResamplerXLV2

SIZES = {
    "dim": 16,
    "depth": 1,
    "dim_head": 8,
    "heads": 2,
    "num_queries": 4,
    "embedding_dim": 12,
    "output1_dim": 8,
    "output2_dim": 6,
    "ff_mult": 2,
}


def test_number_of_tokens_that_is_no_square():
    """Positions of a square grid would be laid over tokens that form none."""
    with pytest.raises(ValueError, match="got 15 tokens, expected a square number"):
        Resampler(2, 16, 2)(torch.zeros(1, 15, 16))


def test_attention_weights():
    """The weights that are shown are those of the output: one row per query, each summing to 1."""
    model, x = Resampler(2, 16, 2).eval(), torch.randn(3, 9, 16)
    out, weights = model(x, return_attention=True)
    assert weights.shape == (3, 2, 4, 9)
    assert torch.allclose(weights.sum(3), torch.ones(3, 2, 4), atol=1e-5)
    assert torch.allclose(out, model(x), atol=1e-5)


def test_normalize_runs_over_channels():
    """The released code normalises over the tokens, so that the scale of one token changes all the others."""
    x = torch.randn(1, 5, 12)
    louder = x * torch.tensor([1.0, 3, 1, 1, 1])[:, None]
    for official in (False, True):
        torch.manual_seed(0)
        model = ResamplerXLV2(**SIZES, normalize=True, official=official).eval()
        assert torch.allclose(model(x)[0], model(louder)[0], atol=1e-5) is not official


def test_order_of_the_tokens_is_invisible():
    """Later stages rely on it: the place of things is in the features or nowhere."""
    model, x = ResamplerXLV2(**SIZES).eval(), torch.randn(1, 6, 12)
    tokens, pooled = model(x)
    assert tokens.shape == (1, 4, 14) and pooled.shape == (1, 6)
    assert torch.allclose(tokens, model(x.flip(1))[0], atol=1e-5)


def test_deep_connector():
    """Bugs: layers that all look with the same queries, or whose residual is lost; a single wide layer with a
    feed-forward part, which would be larger than it should be."""
    torch.manual_seed(0)
    settings, x = {"grid_size": 2, "embed_dim": 16, "num_heads": 2, "kv_dim": 12}, torch.randn(3, 9, 12)
    deep, wide = DeepResampler(**settings, depth=3), DeepResampler(**settings, width=24)
    assert deep(x).shape == wide(x).shape == (3, 4, 16) and not wide.mlps
    one = deep.layers[0](x)
    after = one + deep.mlps[0](one)
    for place in (1, 2):
        after = after + deep.layers[place](x, latents=after)
        after = after + deep.mlps[place](after)
    assert torch.allclose(deep(x), after, atol=1e-6)
    assert not torch.allclose(deep.layers[1](x, latents=one), deep.layers[1](x), atol=1e-3)
