"""Training steps on a GPU: pictures stay there as uint8, and each kind of step is one CUDA graph.

What differs from step to step travels in three small tensors and the seed of the noise; everything else (cutting,
augmentation, both passes, the optimiser) is replayed. The first steps of every kind are taken one operation after the
other, as capturing wants them warmed up; they are steps like all others.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from engines.data.pairs import SCALES, Draw, Sample, light_up, rows_and_columns, shared_region
from engines.network.neid import Neid
from engines.training.guard import Guard
from engines.training.recipe import Recipe
from engines.training.steps import NO_LESSONS, Lesson, train_step

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps of a kind before it is captured."""

READ_EVERY = 25
"""Steps between two looks at the loss and at the guard; each look waits for the GPU."""

ALL = (slice(None), slice(None))
"""SSIM looks at whole pictures here: a GPU has the time."""


class Deck:
    """Samples of one kind on the device."""

    def __init__(self, samples: Sequence[Sample], device: torch.device) -> None:
        """Smaller pictures are filled up with black, which no crop reaches."""
        self._stacks = [
            _stack([getattr(sample, name) for sample in samples], device) for name in ("small", "large", "dark")
        ]

    def batch(self, places: Tensor, light: Tensor, chosen: Draw, generator: torch.Generator) -> list[Tensor]:
        """As `engines.data.pairs.batch`; `places` and `light` are those of `chosen`, all on the device."""
        crops = []
        for stack, scale in zip(self._stacks, SCALES, strict=True):
            rows, columns = rows_and_columns(places, chosen.size, scale)
            crops.append(stack[places[:, :1, None], rows[:, :, None], columns[:, None, :]])
        return light_up(crops, light, chosen, generator)


def _stack(pictures: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]], device: torch.device) -> Tensor:
    """(S, H, W, 3) uint8, as high and wide as the largest."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    stack = torch.zeros(len(pictures), height, width, 3, dtype=torch.uint8)
    for place, picture in zip(stack, pictures, strict=True):
        place[: picture.shape[0], : picture.shape[1]] = torch.from_numpy(picture.copy())
    return stack.to(device)


@dataclass
class Kind:
    """Steps that differ in numbers only."""

    places: Tensor
    light: Tensor
    lesson: Lesson | None = None
    taken: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)


class GraphSteps:
    """Steps on a CUDA device."""

    def __init__(
        self,
        recipe: Recipe,
        network: Neid,
        optimiser: torch.optim.Optimizer,
        samples: Sequence[Sequence[Sample]],
        device: torch.device,
        guard: Guard,
        lessons: Sequence[Lesson | None] = NO_LESSONS,
    ) -> None:
        """The optimiser must be capturable, its learning rate a tensor on the device; `lessons` as in `EagerSteps`."""
        torch.backends.cudnn.benchmark = False  # it would build all kernels for each convolution and shape
        self._recipe, self._network, self._optimiser, self._device = recipe, network, optimiser, device
        self._guard, self._lessons = guard, lessons
        used = [share > 0 for share in recipe.mix]
        self._decks = [Deck(some, device) if use else None for some, use in zip(samples, used, strict=True)]
        self._kinds: dict[tuple[object, ...], Kind] = {}
        self._noise = torch.Generator(device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._told: dict[str, float] = {}
        self._captures = True

    def take(self, kind: int, chosen: Draw, step: int, rate: float, random: np.random.Generator) -> dict[str, float]:
        """See `engines.training.steps.Steps`; the parts are those of the last look at them."""
        del random  # nothing is left to chance here: SSIM looks at whole pictures
        deck, with_detail = self._decks[kind], self._recipe.with_detail(step)
        assert deck is not None, "a kind of pairs whose share in the mix is 0"
        key = (kind, chosen.size, chosen.turned, chosen.mixed, chosen.noisy, chosen.twins, with_detail)
        if key not in self._kinds:
            places, light = (torch.empty_like(x, device=self._device) for x in (chosen.places, chosen.light))
            self._kinds[key] = Kind(places, light, self._lessons[kind])
        this = self._kinds[key]
        self._noise.manual_seed(chosen.seed)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for group in self._optimiser.param_groups:
                group["lr"].fill_(rate)
            this.places.copy_(chosen.places.pin_memory(), non_blocking=True)
            this.light.copy_(chosen.light.pin_memory(), non_blocking=True)
            self._run(this, deck, chosen, with_detail)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        if step % READ_EVERY == 0 or not self._told:
            self._told = {name: part.item() for name, part in this.parts.items()}
            self._guard.check(step + 1)
        return self._told

    def _run(self, this: Kind, deck: Deck, chosen: Draw, with_detail: bool) -> None:
        """Replay the step, or take it eagerly, or capture it and then replay it: a capture computes nothing."""
        if this.graph is None and this.taken < WARM_UP:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*capturable=True")  # these few steps are not captured
                this.parts = self._step(this, deck, chosen, with_detail)
        elif this.graph is None:
            this.graph = self._capture(this, deck, chosen, with_detail)
            if this.graph is None:
                this.parts = self._step(this, deck, chosen, with_detail)
        if this.graph is not None:
            this.graph.replay()
        this.taken += 1

    def _capture(self, this: Kind, deck: Deck, chosen: Draw, with_detail: bool) -> torch.cuda.CUDAGraph | None:
        """The step as a graph; once one cannot be captured, None: torch may refuse all others in this process then."""
        if not self._captures:
            return None
        self._optimiser.zero_grad(set_to_none=True)  # the gradients are to live in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._noise)  # so that each replay draws from the seed of its step
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                this.parts = self._step(this, deck, chosen, with_detail)
        except RuntimeError as error:
            log.warning("no CUDA graphs, so that steps are slower: %s", str(error).partition("\n")[0])
            self._captures = False
            return None
        return graph

    def _step(self, this: Kind, deck: Deck, chosen: Draw, with_detail: bool) -> dict[str, Tensor]:
        pictures = deck.batch(this.places, this.light, chosen, self._noise)
        region = shared_region(this.places, chosen) if chosen.twins else None
        return train_step(
            self._recipe,
            self._network,
            self._optimiser,
            self._guard,
            pictures,
            ALL,
            with_detail,
            region,
            this.lesson,
        )
