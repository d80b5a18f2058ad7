"""Samples of several lengths as one batch of tensors."""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from .layout import IGNORED, Sample


def collate(
    samples: Sequence[Sample], pad: int, length: int | None = None, left: bool = False
) -> dict[str, Tensor | None]:
    """What `ContinuousLVLM` takes beside the pictures, under the names of its arguments.

    input_ids, labels, attention_mask, ids_cmp_mask, ids_gen_mask: [B, L], padded with the id `pad` to the longest, or
    to `length`, on the right or, for prompts, on the left. embeds_cmp_mask, embeds_gen_mask: bool [M], of the
    sub-images of all samples in order. patch_positions: [M, 2], or None where pictures are not cut. Raises ValueError
    for no samples, one longer than `length`, and where only some have positions.
    """
    longest = max((len(sample.input_ids) for sample in samples), default=0)
    length = longest if length is None else length
    if not 0 < longest <= length:
        raise ValueError(f"{len(samples)} samples, the longest of {longest} tokens; expected 1 to {length} in each")
    cut = {sample.patch_positions is not None for sample in samples if sample.embeds_cmp_mask}
    if len(cut) > 1:
        raise ValueError("some pictures are cut and some are not: use one layout for all samples of a batch")

    def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
        filled = ([value] * (length - len(row)) for row in rows)
        return torch.tensor([[*f, *row] if left else [*row, *f] for row, f in zip(rows, filled, strict=True)])

    columns = {f.name: [getattr(sample, f.name) for sample in samples] for f in fields(Sample)}
    batch = {"attention_mask": padded([[1] * len(row) for row in columns["input_ids"]], 0)}
    for name, value in (("input_ids", pad), ("labels", IGNORED), ("ids_cmp_mask", False), ("ids_gen_mask", False)):
        batch[name] = padded(columns[name], value)
    for name in ("embeds_cmp_mask", "embeds_gen_mask"):
        batch[name] = torch.tensor([mask for row in columns[name] for mask in row], dtype=torch.bool)
    centres = [centre for row in columns["patch_positions"] for centre in row or ()]
    batch["patch_positions"] = torch.tensor(centres).reshape(-1, 2) if cut == {True} else None
    return batch
