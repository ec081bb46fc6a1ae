"""What keeps a gradient that is not finite from spoiling a network for good."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from engines.errors import EngineError

MOST_IN_A_ROW = 100
"""Steps without a finite gradient, one after another, that training bears: it does not get out of that by itself."""

log = logging.getLogger(__name__)


class Guard:
    """Lets an optimiser step by finite gradients only, and counts the others on the device, which nobody waits for."""

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)
        """Steps that changed nothing: the last ones in a row, and all."""
        self._told = 0

    def step(self, optimiser: torch.optim.Optimizer, norm: Tensor) -> None:
        """Step, unless the norm () of the gradient is not finite: then network and optimiser stay as they are."""
        unfit = ~norm.isfinite()
        if optimiser.defaults.get("fused"):
            optimiser.found_inf = unfit.float()  # type: ignore[attr-defined]  # its kernel then leaves all as it is
            optimiser.step()
        elif not unfit:
            optimiser.step()
        self.counts[0].add_(1).mul_(unfit)
        self.counts[1].add_(unfit)

    def load(self, counts: Tensor) -> None:
        """Go on counting from `counts` of an earlier sitting, which has told of them."""
        self.counts.copy_(counts)
        self._told = int(counts[1])

    def check(self, step: int) -> None:
        """Tell of steps that changed nothing, up to `step`; waits for the device.

        Raises `EngineError` where too many followed one another.
        """
        in_a_row, in_all = self.counts.tolist()
        if in_all > self._told:
            log.warning("step %d: the gradient is not finite; %d steps changed nothing so far", step, in_all)
            self._told = in_all
        if in_a_row >= MOST_IN_A_ROW:
            raise EngineError(
                f"training ended at step {step}: the gradient was not finite in the last {in_a_row} steps; "
                "the checkpoint holds the network of before"
            )
