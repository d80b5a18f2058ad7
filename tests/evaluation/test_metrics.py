"""Metrics against closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from seedx_lite.evaluation.diversity import coverage, vendi
from seedx_lite.evaluation.images import box_iou, mask_iou, psnr, ssim
from seedx_lite.evaluation.statistics import bootstrap, interval, paired

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (32, 32, 3)).astype(np.uint8)


def test_psnr_of_a_known_error():
    flat = np.full((16, 16, 3), 100, np.uint8)
    assert psnr(flat, flat + 10) == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)
    assert psnr(flat, flat) == math.inf


def test_ssim_falls_from_one():
    other = np.roll(PICTURE, 1, axis=0)
    assert ssim(PICTURE, PICTURE) == pytest.approx(1) and ssim(PICTURE, other) < 0.2
    flat, brighter = np.full((2, 16, 16, 3), 100, np.uint8) + np.array([0, 50], np.uint8)[:, None, None, None]
    c1 = (0.01 * 255) ** 2  # of two flat pictures only the term of the means is left
    assert ssim(flat, brighter) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), abs=5e-4)


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="one size"):
        psnr(PICTURE, PICTURE[:16])
    with pytest.raises(ValueError, match="uint8 expected, got uint8 and float64"):
        psnr(PICTURE, PICTURE / 255)
    with pytest.raises(ValueError, match="at least 11 px expected, got 32x10"):
        ssim(PICTURE[:10], PICTURE[:10])


def test_overlaps():
    left, both = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    left[:, :2] = both[:, :3] = True
    assert mask_iou(left, both) == pytest.approx(2 / 3) and mask_iou(left & ~left, left & ~left) == 1
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7) and box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def test_vendi_counts_what_differs():
    """One picture K times is one; K orthogonal ones are K; two kinds in shares p and 1 - p are exp(entropy)."""
    eye = np.eye(6)
    assert vendi(eye) == pytest.approx(6) and vendi(np.repeat(eye[:1], 5, axis=0)) == pytest.approx(1)
    shares = np.array([0.75, 0.25])
    assert vendi(eye[[0, 0, 0, 1]]) == pytest.approx(math.exp(stats.entropy(shares)))
    many = RNG.normal(size=(40, 6))  # more pictures than dimensions: the same by the other product
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    wide = np.concatenate([many, np.zeros((40, 60))], axis=1)
    assert vendi(many) == pytest.approx(vendi(wide))
    with pytest.raises(ValueError, match="unit vectors"):
        vendi(2 * eye)


def test_coverage_by_hand():
    """Real points 0, 1, 2 … 9 on a line, one neighbour: every radius is 1."""
    real = np.arange(10.0)[:, None]
    assert coverage(real, real, neighbours=1) == 1 and coverage(real, real + 99, neighbours=1) == 0
    assert coverage(real, np.array([[4.5]]), neighbours=1) == pytest.approx(0.2)  # reaches 4 and 5
    with pytest.raises(ValueError, match="more than 5 real"):
        coverage(real[:5], real)


def test_paired_interval_is_that_of_the_t_test():
    a, b = RNG.normal(1, 1, 30), RNG.normal(0.5, 1, 30)
    ours, scipys = paired(a, b), stats.ttest_rel(a, b).confidence_interval()
    assert (ours["low"], ours["high"]) == pytest.approx((scipys.low, scipys.high))
    with pytest.raises(ValueError, match="30 and 29"):
        paired(a, b[:-1])


def test_bootstrap_of_a_mean_is_near_the_t_interval():
    values = RNG.normal(size=400)
    ours, theirs = bootstrap([(v, 1) for v in values]), interval(values)
    assert ours["mean"] == pytest.approx(theirs["mean"])
    assert (ours["low"], ours["high"]) == pytest.approx((theirs["low"], theirs["high"]), abs=0.01)


def test_bootstrap_of_a_ratio_resamples_pictures():
    """Bug: parts and wholes resampled apart, or the mean of ratios in place of the ratio of sums."""
    assert bootstrap([(1, 1), (0, 3)] * 50)["mean"] == pytest.approx(0.25)
    told = bootstrap([(1, 2), (3, 6)] * 50)
    assert list(told.values()) == pytest.approx([0.5] * 3)
    with pytest.raises(ValueError, match="nothing to average"):
        bootstrap([(0, 0)])


def test_all_right_is_not_certain():
    """Bug: an interval without width, as all draws of a bootstrap from equal samples are equal."""
    exact = stats.binomtest(9, 9).proportion_ci(method="exact").low
    assert bootstrap([(2, 2)] * 9 + [(0, 0)]) == pytest.approx({"mean": 1, "low": exact, "high": 1})
    assert bootstrap([(0, 1)] * 9) == pytest.approx({"mean": 0, "low": 0, "high": 1 - exact})
