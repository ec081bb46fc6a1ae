from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from engines.evaluation.scores import mean_ratio, psnr, psnr_gt_mean, ssim

RANDOM = np.random.default_rng(4)
TRUTH = RANDOM.integers(0, 256, (60, 80, 3), dtype=np.uint8)
NOISY = np.clip(TRUTH + RANDOM.normal(0, 12, TRUTH.shape), 0, 255).astype(np.uint8)


def test_psnr_agrees_with_an_independent_implementation() -> None:
    assert psnr(NOISY, TRUTH) == pytest.approx(peak_signal_noise_ratio(TRUTH, NOISY), abs=1e-3)


def test_gt_mean_psnr_agrees_with_an_independent_implementation() -> None:
    dark = (0.6 * NOISY).astype(np.uint8)
    scaled = (dark * (TRUTH.mean() / dark.mean())).clip(0, 255)
    expected = peak_signal_noise_ratio(TRUTH.astype(float), scaled, data_range=255)
    assert psnr_gt_mean(dark, TRUTH) == pytest.approx(expected, abs=1e-3)


def test_ssim_agrees_with_an_independent_implementation() -> None:
    _, theirs = structural_similarity(
        TRUTH, NOISY, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert ssim(NOISY, TRUTH) == pytest.approx(theirs[5:-5, 5:-5].mean(), abs=1e-3)


def test_equal_pictures_have_perfect_scores() -> None:
    assert psnr(TRUTH, TRUTH) == float("inf")
    assert ssim(TRUTH, TRUTH) == pytest.approx(1)
    assert mean_ratio(TRUTH, TRUTH) == 1


def test_gt_mean_hides_an_error_of_exposure_and_raw_psnr_tells_it() -> None:
    truth = RANDOM.integers(60, 120, (40, 40, 3), dtype=np.uint8)
    dark = (truth / 2).astype(np.uint8)
    assert psnr(dark, truth) < 17
    assert psnr_gt_mean(dark, truth) > 45
    assert mean_ratio(dark, truth) == pytest.approx(0.5, abs=0.01)
