"""Scores of a picture against the true one, both (H, W, 3) uint8 RGB."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

WINDOW = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
WINDOW /= WINDOW.sum()


def psnr(picture: Picture, truth: Picture) -> float:
    """Raw peak signal to noise ratio in dB; infinite for equal pictures."""
    return _psnr(picture.astype(np.float64), truth)


def psnr_gt_mean(picture: Picture, truth: Picture) -> float:
    """PSNR in dB after scaling the picture to the truth's mean, which hides errors of exposure."""
    return _psnr(np.clip(picture / mean_ratio(picture, truth), 0, 255), truth)


def mean_ratio(picture: Picture, truth: Picture) -> float:
    """Mean of the picture over the mean of the truth; 1 is the right exposure."""
    return float(max(picture.mean(), 1e-6) / max(truth.mean(), 1e-6))


def ssim(picture: Picture, truth: Picture) -> float:
    """Structural similarity (Wang et al., 2004), mean over channels: Gaussian 11x11 of sigma 1.5, valid region."""
    a, b = picture.astype(np.float64), truth.astype(np.float64)
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float(similarity.mean())


def _psnr(picture: NDArray[np.float64], truth: Picture) -> float:
    error = float(np.mean((picture - truth) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _blur(channels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Separable Gaussian over the first two axes, valid region only."""
    for axis in (0, 1):
        length = channels.shape[axis] - len(WINDOW) + 1
        total = np.zeros_like(channels.take(range(length), axis))
        for offset, weight in enumerate(WINDOW):
            total += weight * channels.take(range(offset, offset + length), axis)
        channels = total
    return channels
