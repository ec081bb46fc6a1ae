"""Feature fusing: detail features decide, channel by channel, how light and detail are mixed (section 2.2)."""

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

    def forward(self, light: Tensor, detail: Tensor) -> Tensor:
        """Both (N, C, h, w); returns (N, C, h, w)."""
        weights: Tensor = self.weigh(detail.mean((2, 3), keepdim=True))  # (N, C, 1, 1)
        return detail + weights * (light - detail)
