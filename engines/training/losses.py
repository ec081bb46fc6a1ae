"""What training minimises: pure functions of (prediction, target), each (N, 3, H, W) RGB in [0, 1].

Equations are those of Jiang et al., "Bridge the Vision Gap from Field to Command" (2021); their weighted sum, equation
7, is `engines.training.steps.loss_parts` with `Recipe.weights`. What has no number is not in the paper.
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
"""The least divisor of a ratio of colours: below it the gradient would drown all others."""
TINY = 1e-3
"""Below this product of norms a cosine's distance falls to 0 with it: two empty channels are equal, and the gradient of
nearly empty ones does not drown all others."""
TINIEST = 1e-20


def huber(prediction: Tensor, target: Tensor) -> Tensor:
    """Equations 1 and 2 with delta 0.1: at 1.0 it would be plain MSE on such pictures."""
    return functional.huber_loss(prediction, target, delta=HUBER_DELTA)


def detail_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 3: the detail branch against the full-size dark picture."""
    return functional.mse_loss(prediction, target)


def chroma(prediction: Tensor, target: Tensor) -> Tensor:
    """Equations 4 to 6 as one cosine distance of chroma vectors, nearly S (cos 2piH, sin 2piH): on a hexagon, where hue
    and saturation need neither angle nor root, the vector is up to 13 % shorter and 1 degree off.

    Taken literally, the cosine of hue angles is mostly noise: a quarter of real pixels is nearly grey and red wraps.
    """
    a, b = _chroma_vectors(prediction), _chroma_vectors(target)
    product = (a * b).mean((1, 2, 3))
    squares = a.square().mean((1, 2, 3)) * b.square().mean((1, 2, 3))
    return 1 - _similarity(product, squares)


def _chroma_vectors(picture: Tensor) -> Tensor:
    """Hexagonal hue-saturation vectors, (N, 2, H, W); clamped where the divisor would blow the gradient up."""
    red, green, blue = picture.clamp(0, 1).unbind(1)
    largest = picture.clamp(FAINT, 1).amax(1)
    x = (red - 0.5 * (green + blue)) / largest
    y = (3**0.5 / 2) * (green - blue) / largest
    return torch.stack((x, y), dim=1)


def hue_saturation(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 4 to the letter: the sum of `hue` and `saturation`."""
    return hue(prediction, target) + saturation(prediction, target)


def hue(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 5: one minus the cosine between the hue channels, each taken as one long vector of angles in [0, 1]."""
    return 1 - _cosine(_hue(prediction), _hue(target))


def saturation(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 6: the same of the saturation channels."""
    return 1 - _cosine(_saturation(prediction), _saturation(target))


def _hue(picture: Tensor) -> Tensor:
    """(N, H, W) hue in [0, 1]; that of nearly grey pixels, which is noise, is drawn to their sector's middle."""
    picture = picture.clamp(0, 1)
    red, green, blue = picture.unbind(1)
    largest, place = picture.max(1)
    span = (largest - picture.amin(1)).clamp_min(FAINT)
    sectors = ((green - blue) / span) % 6, (blue - red) / span + 2, (red - green) / span + 4
    return torch.stack(sectors, dim=1).gather(1, place[:, None])[:, 0] / 6


def _saturation(picture: Tensor) -> Tensor:
    """(N, H, W) in [0, 1]."""
    picture = picture.clamp(0, 1)
    largest = picture.amax(1)
    return (largest - picture.amin(1)) / largest.clamp_min(FAINT)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of the (H, W) of each picture, mean over pictures; 1 where both are zero everywhere."""
    return _similarity((a * b).mean((1, 2)), a.square().mean((1, 2)) * b.square().mean((1, 2)))


def _similarity(product: Tensor, squares: Tensor) -> Tensor:
    """Of each picture's two vectors, from their product (N,) and the product of their squares (N,); mean over N."""
    norms = (squares + TINIEST).sqrt()  # whose slope at zero would be infinite
    least = norms.clamp_min(TINY)
    return ((product + least - norms) / least).mean()


def scale_to_mean(prediction: Tensor, target: Tensor) -> Tensor:
    """The prediction, each picture scaled to its target's mean: what is left of the error is structure, not exposure.

    The gradient passes through the mean too, so that a loss of this does not move exposure at all.
    """
    means = prediction.mean((1, 2, 3), keepdim=True).clamp_min(FAINT)
    return prediction * (target.mean((1, 2, 3), keepdim=True) / means)


def steady(one: Tensor, other: Tensor) -> Tensor:
    """Mean absolute difference between what the network makes of two noisy, moved pictures of one place.

    The self-consistency of StableLLVE (Zhang et al., "Learning Temporal Consistency for Low Light Video Enhancement
    from Single Images", CVPR 2021), with whole-pixel shifts in place of optical flow. Absolute and not Huber's: what
    flickers are a few code values, where a squared loss no longer pulls.
    """
    return functional.l1_loss(one, other)


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity: Gaussian 11x11 window of sigma 1.5, each channel, valid region."""
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
