"""Keeps a gradient that is not finite from ruining a network."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from engines.errors import EngineError

MOST_IN_A_ROW = 100
"""Steps in a row without a finite gradient after which training ends: it does not recover by itself."""

log = logging.getLogger(__name__)


class Guard:
    """Lets an optimiser step on finite gradients only; counts the others on the device, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)
        """Steps that changed nothing: the latest in a row, and in all."""
        self._reported = 0

    def step(self, optimiser: torch.optim.Optimizer, norm: Tensor) -> None:
        """Step, unless the norm () of the gradient is not finite: then network and optimiser stay as they are."""
        unfit = ~norm.isfinite()
        if optimiser.defaults.get("fused"):
            optimiser.found_inf = unfit.float()  # type: ignore[attr-defined]  # its kernel then changes nothing
            optimiser.step()
        elif not unfit:
            optimiser.step()
        self.counts[0].add_(1).mul_(unfit)
        self.counts[1].add_(unfit)

    def load(self, counts: Tensor) -> None:
        """Continue from the `counts` of an earlier sitting, which has reported them."""
        self.counts.copy_(counts)
        self._reported = int(counts[1])

    def check(self, step: int) -> None:
        """Log how many steps changed nothing, up to `step`; waits for the device.

        Raises `EngineError` if there were too many in a row.
        """
        in_a_row, in_all = self.counts.tolist()
        if in_all > self._reported:
            log.warning("step %d: the gradient is not finite; %d steps changed nothing so far", step, in_all)
            self._reported = in_all
        if in_a_row >= MOST_IN_A_ROW:
            raise EngineError(
                f"training ended at step {step}: the gradient was not finite in the last {in_a_row} steps; "
                "the checkpoint holds the network from before them"
            )
