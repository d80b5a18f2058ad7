"""When bf16 is used, and that attention under it is computed in float32."""

import pytest
import torch
from torch.nn import functional as F

from seedx_lite.models.precision import AttentionInFloat32, native_bf16, quick_sampling


@pytest.mark.parametrize(("units", "native"), [({"amx_bf16": True}, True), ({"amx_bf16": False}, False), ({}, False)])
def test_bf16_where_there_are_units_for_it(monkeypatch, units, native):
    """Bug: emulated bf16, several times slower than float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    there, why = native_bf16(torch.device("cpu"))
    assert there == native and ("amx_bf16" if native else "no bf16 unit") in why
    with quick_sampling("cpu"):
        assert F.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == (torch.bfloat16 if native else torch.float32)
    assert not torch.is_autocast_enabled("cpu")


def test_attention_in_float32_under_autocast():
    """Bug: half of the arguments converted, or a mode that stays on."""
    query = torch.randn(1, 2, 4, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.scaled_dot_product_attention(query, query, query).dtype == torch.bfloat16
        with AttentionInFloat32():
            made = F.scaled_dot_product_attention(query, query, value=query)
        assert made.dtype == torch.float32
        expected = F.scaled_dot_product_attention(query.double(), query.double(), query.double())
        assert torch.allclose(made.double(), expected, atol=1e-5)
        assert F.scaled_dot_product_attention(query, query, query).dtype == torch.bfloat16
