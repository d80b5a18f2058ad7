"""Pictures against pictures: error of pixels, structure, and where things and their small parts are.

Pictures are uint8 [H, W, 3].
"""

from collections.abc import Sequence

import numpy as np
import torch


def psnr(picture: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, by torchmetrics; infinite for equal pictures. Raises ValueError for unequal
    sizes."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(*_pair(picture, other), data_range=255.0))


def ssim(picture: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity (Gaussian window of 11 px, σ 1.5), by torchmetrics: 1 for equal pictures. Raises ValueError
    for unequal sizes, or a side below 11 px."""
    if min(picture.shape[:2]) < 11:
        raise ValueError(f"SSIM: sides of at least 11 px expected, got {picture.shape[1]}x{picture.shape[0]}")
    from torchmetrics.functional.image import structural_similarity_index_measure

    return float(structural_similarity_index_measure(*_pair(picture, other), data_range=255.0))


def _pair(*pictures: np.ndarray) -> tuple[torch.Tensor, ...]:
    shapes = [picture.shape for picture in pictures]
    if shapes[0] != shapes[1] or len(shapes[0]) != 3:
        raise ValueError(f"two pictures [H, W, 3] of one size expected, got {shapes[0]} and {shapes[1]}")
    if any(picture.dtype != np.uint8 for picture in pictures):
        raise ValueError(f"pictures in uint8 expected, got {' and '.join(str(p.dtype) for p in pictures)}")
    return tuple(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() for picture in pictures)


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks, bool of one shape; 1 if both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, wide) * max(0.0, high)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared) if shared else 0.0
