"""How different pictures are from each other, and how much of what there is they reach.

Features are rows of one vector for each picture, such as `scene_reader.picture_features`.
"""

import numpy as np


def vendi(features: np.ndarray) -> float:
    """Vendi score (arXiv 2210.02410) of unit vectors [K, D]: how many different pictures there are in effect, from 1
    (all alike) to K (all orthogonal). It is the exponential of the entropy of the eigenvalues of their cosines over K.

    Raises ValueError for rows that are not of length 1.
    """
    features = np.asarray(features, dtype=np.float64)
    if not len(features) or not np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-3):
        raise ValueError(f"vendi: unit vectors [K, D] with K at least 1 expected, got {features.shape}")
    gram = features @ features.T if len(features) <= features.shape[1] else features.T @ features  # same eigenvalues
    values = np.linalg.eigvalsh(gram / len(features))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def coverage(real: np.ndarray, drawn: np.ndarray, neighbours: int = 5) -> float:
    """Coverage (arXiv 2002.09797): the share of real pictures [K, D] that have a drawn one [M, D] nearer than their
    `neighbours`-th nearest real one.

    Raises ValueError if there are no more real pictures than `neighbours`.
    """
    real, drawn = np.asarray(real, dtype=np.float64), np.asarray(drawn, dtype=np.float64)
    if len(real) <= neighbours or not len(drawn):
        raise ValueError(f"coverage: more than {neighbours} real and one drawn expected, got {len(real)}, {len(drawn)}")
    radius = np.sort(_distances(real, real), axis=1)[:, neighbours]  # column 0 is the picture itself
    return float((_distances(real, drawn).min(axis=1) <= radius).mean())


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances [K, M]."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(squares.clip(min=0))
