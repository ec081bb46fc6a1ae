"""Loss functions: pure functions of (prediction, target), each (N, 3, H, W) RGB in [0, 1].

Equations are those of Jiang et al., "Bridge the Vision Gap from Field to Command" (2021); their weighted sum, equation
7, is `engines.training.steps.loss_parts` with `Recipe.weights`. Losses without an equation are not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target) to a scalar."""

HUBER_DELTA = 0.1
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
FAINT = 0.05
"""Least divisor in ratios of colours: with a smaller one the gradient would swamp all others."""
TINY = 1e-3
"""Product of norms below which the cosine distance falls linearly to 0: two empty channels are equal, and the gradient
of nearly empty ones does not swamp all others."""
TINIEST = 1e-20


def huber(prediction: Tensor, target: Tensor) -> Tensor:
    """Equations 1 and 2 with delta 0.1: with 1.0 it would be plain MSE on values in [0, 1]."""
    return functional.huber_loss(prediction, target, delta=HUBER_DELTA)


def detail_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 3: the detail branch against the full-size dark picture."""
    return functional.mse_loss(prediction, target)


def chroma(prediction: Tensor, target: Tensor) -> Tensor:
    """Equations 4 to 6 as one cosine distance between chroma vectors, which are nearly S (cos 2piH, sin 2piH).

    They are computed on the hexagon, without angles or roots, and are up to 13 % shorter and 1 degree off. Taken
    literally, the cosine of hue angles is mostly noise: a quarter of real pixels is nearly grey, and red wraps around.
    """
    a, b = _chroma_vectors(prediction), _chroma_vectors(target)
    product = (a * b).mean((1, 2, 3))
    squares = a.square().mean((1, 2, 3)) * b.square().mean((1, 2, 3))
    return 1 - _similarity(product, squares)


def _chroma_vectors(picture: Tensor) -> Tensor:
    """Hexagonal hue-saturation vectors, (N, 2, H, W), with a clamped divisor, so that the gradient does not explode."""
    red, green, blue = picture.clamp(0, 1).unbind(1)
    largest = picture.clamp(FAINT, 1).amax(1)
    x = (red - 0.5 * (green + blue)) / largest
    y = (3**0.5 / 2) * (green - blue) / largest
    return torch.stack((x, y), dim=1)


def hue_saturation(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 4 to the letter: the sum of `hue` and `saturation`."""
    return hue(prediction, target) + saturation(prediction, target)


def hue(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 5: one minus the cosine of the hue channels, each a long vector of angles in [0, 1]."""
    return 1 - _cosine(_hue(prediction), _hue(target))


def saturation(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 6: the same for the saturation channels."""
    return 1 - _cosine(_saturation(prediction), _saturation(target))


def _hue(picture: Tensor) -> Tensor:
    """(N, H, W) hue in [0, 1]; nearly grey pixels, whose hue is noise, are drawn to the middle of their sector."""
    picture = picture.clamp(0, 1)
    red, green, blue = picture.unbind(1)
    largest, place = picture.max(1)
    span = (largest - picture.amin(1)).clamp_min(FAINT)
    sectors = ((green - blue) / span) % 6, (blue - red) / span + 2, (red - green) / span + 4
    return torch.stack(sectors, dim=1).gather(1, place[:, None])[:, 0] / 6


def _saturation(picture: Tensor) -> Tensor:
    """(N, H, W) saturation in [0, 1]."""
    picture = picture.clamp(0, 1)
    largest = picture.amax(1)
    return (largest - picture.amin(1)) / largest.clamp_min(FAINT)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity over (H, W), mean over pictures; 1 for a picture where both are all zeros."""
    return _similarity((a * b).mean((1, 2)), a.square().mean((1, 2)) * b.square().mean((1, 2)))


def _similarity(product: Tensor, squares: Tensor) -> Tensor:
    """Mean cosine similarity of N pairs of vectors, from their products (N,) and products of squares (N,)."""
    norms = (squares + TINIEST).sqrt()  # the root's slope at zero would be infinite
    least = norms.clamp_min(TINY)
    return ((product + least - norms) / least).mean()


def scale_to_mean(prediction: Tensor, target: Tensor) -> Tensor:
    """Scale each picture of the prediction to its target's mean, which leaves errors of structure, not of exposure.

    The gradient passes through the mean too, so a loss on the result does not change exposure at all.
    """
    means = prediction.mean((1, 2, 3), keepdim=True).clamp_min(FAINT)
    return prediction * (target.mean((1, 2, 3), keepdim=True) / means)


def steady(one: Tensor, other: Tensor) -> Tensor:
    """Mean absolute difference between the outputs for two noisy, shifted pictures of one place.

    The self-consistency of StableLLVE (Zhang et al., "Learning Temporal Consistency for Low Light Video Enhancement
    from Single Images", CVPR 2021), with whole-pixel shifts in place of optical flow. Absolute, not Huber: flicker is a
    few code values, for which the gradient of a squared loss vanishes.
    """
    return functional.l1_loss(one, other)


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity over all channels: Gaussian 11x11 window of sigma 1.5, valid region."""
    channels = prediction.shape[1]
    window = gaussian_window(prediction.device)

    def blur(x: Tensor) -> Tensor:
        x = functional.conv2d(x, window.view(1, 1, -1, 1).expand(x.shape[1], 1, -1, 1), groups=x.shape[1])
        return functional.conv2d(x, window.view(1, 1, 1, -1).expand(x.shape[1], 1, 1, -1), groups=x.shape[1])

    moments = torch.cat((prediction, target, prediction**2, target**2, prediction * target), dim=1)  # (N, 5C, H, W)
    p, t, pp, tt, pt = torch.split(blur(moments), channels, dim=1)
    c1, c2 = 0.01**2, 0.03**2
    covariance = pt - p * t
    variances = (pp - p * p) + (tt - t * t)
    similarity = ((2 * p * t + c1) * (2 * covariance + c2)) / ((p * p + t * t + c1) * (variances + c2))
    return similarity.mean()


def gaussian_window(device: torch.device) -> Tensor:
    """(11,) float32 weights that sum to 1."""
    distance = torch.arange(SSIM_WINDOW, device=device) - SSIM_WINDOW // 2
    weights = torch.exp(-(distance**2) / (2 * SSIM_SIGMA**2))
    return weights / weights.sum()
