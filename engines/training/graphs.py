"""Training steps on a GPU: pictures stay there as uint8, and each kind of step is one CUDA graph.

What differs between steps is passed in three small tensors and the seed of the noise; everything else (cropping,
augmentation, both passes, the optimiser) is replayed. The first steps of every kind are taken eagerly, since a capture
needs a warm-up; they count like all others.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from engines.data.lol import Picture
from engines.data.pairs import SCALES, Draw, Sample, light_up, rows_and_columns, shared_region
from engines.network.neid import Neid
from engines.training.guard import Guard
from engines.training.recipe import Recipe
from engines.training.steps import NO_LESSONS, Lesson, train_step

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps of a kind before it is captured."""

READ_EVERY = 25
"""Steps between two readings of the loss and the guard; each waits for the GPU."""

ALL = (slice(None), slice(None))
"""SSIM is computed over whole pictures here: a GPU has the time."""


class Pile:
    """Pictures of any size on the device, as one long row of pixels."""

    def __init__(self, pictures: Sequence[Picture], device: torch.device) -> None:
        self.pixels = torch.from_numpy(np.concatenate([picture.reshape(-1, 3) for picture in pictures])).to(device)
        """(P, 3) uint8."""
        sizes = [height * width for height, width, _ in (picture.shape for picture in pictures)]
        self._first = torch.tensor([0, *sizes[:-1]], device=device).cumsum(0)
        self._width = torch.tensor([picture.shape[1] for picture in pictures], device=device)

    def crops(self, numbers: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """(N, h, w, 3) uint8: the rows (N, h) and columns (N, w) of the pictures with these numbers (N,)."""
        starts = self._first[numbers, None] + rows * self._width[numbers, None]
        return self.pixels[starts[:, :, None] + columns[:, None, :]]


class Deck:
    """Samples of one kind on the device."""

    def __init__(self, samples: Sequence[Sample], device: torch.device, *, dark: bool = True) -> None:
        """`dark`: with the dark pictures at full size, which only the detail branch needs."""
        names = ("small", "large", "dark") if dark else ("small", "large")
        self.piles = [Pile([getattr(sample, name) for sample in samples], device) for name in names]

    def batch(self, places: Tensor, light: Tensor, chosen: Draw, generator: torch.Generator) -> list[Tensor]:
        """Like `engines.data.pairs.batch`; `places` and `light` are those of `chosen`, on the device."""
        crops = [
            pile.crops(places[:, 0], *rows_and_columns(places, chosen.size, scale))
            for pile, scale in zip(self.piles, SCALES, strict=False)
        ]
        return light_up(crops, light, chosen, generator)


@dataclass
class Kind:
    """Steps that differ only in their numbers, so that one graph serves them all."""

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
        dark = recipe.with_detail(0)
        self._decks = [
            Deck(some, device, dark=dark) if share > 0 else None
            for some, share in zip(samples, recipe.mix, strict=True)
        ]
        self._kinds: dict[tuple[object, ...], Kind] = {}
        self._noise = torch.Generator(device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        """Memory shared by all graphs: they are replayed in turn, and the output of one is read before the next."""
        self._last_parts: dict[str, float] = {}
        self._captures = True

    def take(self, kind: int, chosen: Draw, step: int, rate: float, random: np.random.Generator) -> dict[str, float]:
        """See `engines.training.steps.Steps`; the parts are those that were read last."""
        del random  # not needed: SSIM is computed over whole pictures
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
        if step % READ_EVERY == 0 or not self._last_parts:
            self._last_parts = {name: part.item() for name, part in this.parts.items()}
            self._guard.check(step + 1)
        return self._last_parts

    def _run(self, this: Kind, deck: Deck, chosen: Draw, with_detail: bool) -> None:
        """Take the step: eagerly at first, then as a graph. A capture computes nothing, so it is replayed at once."""
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
        """The step as a graph; None once a capture has failed: torch may then refuse all others in this process."""
        if not self._captures:
            return None
        self._optimiser.zero_grad(set_to_none=True)  # so that the gradients live in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._noise)  # so that each replay draws from the seed of its step
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                this.parts = self._step(this, deck, chosen, with_detail)
        except RuntimeError as error:
            log.warning("no CUDA graphs, so that steps are slower: %s", str(error).partition("\n")[0])
            self._captures = False
            for kind in self._kinds.values():
                kind.graph = None
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
