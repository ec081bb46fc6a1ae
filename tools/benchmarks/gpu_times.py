"""Times of batches through the door of an engine, and of their upload, network and download alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from statistics import median

from engines.door import Door, Size, Slot
from engines.errors import EngineError
from engines.nvidia.cuda_engine import CudaEngine
from engines.nvidia.cuda_lanes import LANES
from tools.benchmarks.gpu_checks import make_picture

SIZES: tuple[Size, ...] = ((640, 360), (352, 288), (1280, 720))
BATCHES = ((8, 1, 2, 4), (32, 16))
"""Each row is measured with an engine prepared for its largest batch, which for the first row is a relay's. The most
valuable counts of each row come first."""
OTHERS_SIZE: Size = (640, 360)
"""Of weights other than the chosen ones."""
ROUNDS = 3
"""Each figure is the median of these; what is compared takes turns, round by round."""
TURN_SECONDS = 0.1
"""How long, about, a figure is measured in each round."""
FEWEST, MOST = 3, 500
"""Batches per turn."""
UNDER_WAY = LANES
"""Batches that are in the engine at once while it is kept busy."""
KEPT = 0.9
"""Share of each feed's memory that is kept, as in a relay."""

Figures = dict[str, float | str]


def cells() -> list[tuple[Size, tuple[int, ...]]]:
    """All that is measured, one engine each: a picture size, and counts of pictures in a batch."""
    return [(size, counts) for counts in BATCHES for size in SIZES]


class Batches:
    """Batches of one size and count through the door of one engine, each picture from a feed of its own."""

    def __init__(self, engine: Door, size: Size, count: int) -> None:
        self._engine, self._size = engine, size
        self._memories = [engine.new_memory() for _ in range(count)]
        self._pictures = cycle([make_picture("dusk", size, seed) for seed in range(3)])
        for _ in range(LANES + 1):  # some things are compiled or captured at first use
            self.whole()
        self.batches_per_turn = min(MOST, max(FEWEST, round(TURN_SECONDS / self.whole())))

    def start(self) -> list[Slot]:
        """Submit a batch: acquire and fill its slots, as a relay does."""
        slots = []
        try:
            for memory in self._memories:
                slots.append(slot := self._engine.acquire(*self._size))
                picture = next(self._pictures)
                slot.y[:], slot.uv[:], slot.colour = picture.y, picture.uv, picture.colour
                slot.memory, slot.keep = memory, KEPT
            self._engine.submit(slots)
        except BaseException:
            give_back(slots)
            raise
        return slots

    @staticmethod
    def end(slots: list[Slot]) -> None:
        """Wait for every picture of a batch and give its slots back."""
        try:
            for slot in slots:
                slot.wait()
        finally:
            give_back(slots)

    def whole(self) -> float:
        """Seconds from the first `acquire` of a batch to its end, with nothing else in the engine."""
        began = time.perf_counter()
        self.end(self.start())
        return time.perf_counter() - began

    def latency(self) -> dict[str, float]:
        """Median seconds of batches one after another."""
        return {"latency": median(self.whole() for _ in range(self.batches_per_turn))}

    def door(self) -> dict[str, float]:
        """Seconds per batch while `UNDER_WAY` batches are always in the engine."""
        under_way: deque[list[Slot]] = deque()
        try:
            under_way.extend(self.start() for _ in range(UNDER_WAY - 1))
            began = time.perf_counter()
            for _ in range(self.batches_per_turn):
                under_way.append(self.start())
                self.end(under_way.popleft())
            return {"door": (time.perf_counter() - began) / self.batches_per_turn}
        finally:
            for slots in under_way:
                with suppress(EngineError):  # after a failure the others fail as well
                    self.end(slots)

    def alone(self) -> dict[str, float]:
        """Seconds of upload, network and download alone; empty if the engine is not on a GPU."""
        if not isinstance(self._engine, CudaEngine):
            return {}
        slots = self.start()
        try:
            for slot in slots:
                slot.wait()
                slot.memory = None
            return self._engine.seconds_alone(slots, self.batches_per_turn)
        finally:
            give_back(slots)


def give_back(slots: Sequence[Slot]) -> None:
    """Release every slot."""
    for slot in slots:
        slot.release()


def times(engines: Mapping[str, Door], size: Size, count: int) -> dict[str, Figures]:
    """Figures of a batch for each engine, measured in turns; `failed` says why there are none."""
    runners: dict[str, Batches] = {}
    failed: dict[str, Figures] = {}
    for name, engine in engines.items():
        try:
            runners[name] = Batches(engine, size, count)
        except EngineError as error:
            failed[name] = {"failed": str(error)}
    return failed | in_turns(runners, count)


def in_turns(runners: Mapping[str, Batches], count: int) -> dict[str, Figures]:
    """Medians of all rounds, by the name of the runner; one that fails takes no more turns."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    failed: dict[str, Figures] = {}
    for _ in range(ROUNDS):
        for name in [name for name in runners if name not in failed]:
            batches = runners[name]
            try:
                rounds[name].append(batches.door() | batches.latency() | batches.alone())
            except EngineError as error:
                failed[name] = {"failed": str(error)}
    return failed | {
        name: derived({part: median(each[part] for each in of_engine) for part in of_engine[0]}, count)
        for name, of_engine in rounds.items()
        if name not in failed
    }


def derived(seconds: Mapping[str, float], count: int) -> Figures:
    """Milliseconds by part, and what follows from them."""
    figures: Figures = {f"{part}_ms": 1000 * value for part, value in seconds.items()}
    figures["fps"] = count / seconds["door"]
    if "network" in seconds:
        figures["door_ratio"] = seconds["door"] / seconds["network"]
        figures["copies_hidden"] = hidden(seconds["door"] - seconds["network"], seconds["upload"] + seconds["download"])
    return figures


def hidden(visible: float, copies: float) -> float:
    """The share of the copying time, 0 to 1, that overlaps with the network; `visible` is what does not overlap."""
    return min(1.0, max(0.0, 1 - visible / copies))


def memory_growth(engine: Door, size: Size, count: int, used_mb: Callable[[], float | None]) -> float | None:
    """MB of GPU memory that an engine takes for batches of this size and count; None if not known."""
    before = used_mb()
    Batches(engine, size, count)
    after = used_mb()
    return None if before is None or after is None else after - before
