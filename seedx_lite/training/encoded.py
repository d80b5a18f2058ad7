"""What frozen parts make of pictures: computed once, and kept in the cache of `runs`."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seedx_lite.artifacts import processes, project_path
from seedx_lite.data.formats import alone, replacing
from seedx_lite.models.vit import VisionTransformerWithAttnPool, embed_pictures


def kept(name: str, pictures: np.ndarray, compute: Callable[[], Tensor], runs: str | Path, **options) -> np.ndarray:
    """`compute()` as an array, from the cache if it is there. name: tells what encodes which pictures, with `{seen}`
    where their number and hash belong. options: of `np.load`."""
    seen = hashlib.sha256(np.ascontiguousarray(pictures)).hexdigest()[:12]
    path = project_path(runs) / "cache" / f"{name.format(seen=f'{len(pictures)}-{seen}')}.npy"
    with alone(path):
        if not path.is_file():
            with replacing(path) as draft, draft.open("wb") as stream:
                np.save(stream, compute().cpu().numpy())
    return np.load(path, **options)


def kept_embeddings(
    tower: VisionTransformerWithAttnPool, vit_id: str, name: str, pictures: np.ndarray, n: int, runs: str | Path
) -> np.ndarray:
    """Visual embeddings of uint8 pictures [K, H, W, 3], pooled to `n`: float16 [K, n, D], mapped from the cache.
    vit_id: of the artifact; name: of the set of pictures."""

    def compute() -> Tensor:
        return embed_pictures(tower.to(processes().device), pictures, n, torch.float16)

    return kept(f"embeddings-{vit_id}-{name}-{{seen}}-{n}", pictures, compute, runs, mmap_mode="r")
