"""Feature fusing: detail features decide for each channel how light and detail are mixed (paper section 2.2)."""

from __future__ import annotations

from torch import Tensor, nn


class FeatureFusing(nn.Module):
    """w = sigmoid(FC(ReLU(FC(mean of detail)))); fused = w * light + (1 - w) * detail."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def weights(self, detail: Tensor) -> Tensor:
        """Detail features (N, C, h, w) to one weight in [0, 1] for each channel: (N, C)."""
        return self.weigh(detail.mean((2, 3), keepdim=True)).flatten(1)  # type: ignore[no-any-return]

    def forward(self, light: Tensor, detail: Tensor, weights: Tensor) -> Tensor:
        """Features (N, C, h, w) and weights (N, C); returns (N, C, h, w)."""
        return detail + weights.to(light.dtype)[:, :, None, None] * (light - detail)
