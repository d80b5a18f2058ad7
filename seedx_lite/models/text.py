"""Text in models: the two CLIP encoders of an SDXL-type model, and what a language model pays for each token."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def load_text_encoders(folder: str | Path):
    """Tokenizer, `CLIPTextModel` and `CLIPTextModelWithProjection`, in eval mode and float32.

    folder: an SDXL pipeline's, or the ViT's artifact.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

    folder = Path(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    first = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
    return tokenizer, first.eval(), second.eval()


def encode_text(encoders: Sequence[nn.Module], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids [B, L] → what conditions SDXL: both penultimate layers side by side [B, L, D1 + D2], and the pooled
    projection of the second encoder [B, D2]."""
    first, second = (encoder(tokens, output_hidden_states=True) for encoder in encoders)
    context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return context.float(), second.text_embeds.float()


def token_losses(model: nn.Module, tokens: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy [B, L - 1] of each token after the first, in nats, and bool [B, L - 1]: no padding."""
    logits = model(input_ids=tokens, attention_mask=(tokens != pad).long()).logits[:, :-1].float()
    return F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none"), tokens[:, 1:] != pad
