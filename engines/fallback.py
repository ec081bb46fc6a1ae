"""Several engines as one: the best one that is ready enhances, and if it fails, the next one does.

    better engines, best first ──► one at a time: opened, then made ready for size after size, in a thread of its own
    last engine ─────────────────► ready at once; takes each picture that no better one is ready for

A better engine takes over a size as soon as it is ready for it. If it refuses a size or fails to prepare it, it loses
that size; if it fails on a picture or takes too long, it is given up and the next one is opened. Pictures of one feed
stay in order throughout, since whoever submits them also waits for them in order.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from engines.door import Door, Memory, Slot
from engines.errors import EngineError, EngineMismatch, EngineMissing
from engines.loans import Loan, Loans
from engines.ring import EXIT_SECONDS, is_busy
from engines.watch import WatchedEngine

THREAD = "nightbridge-engine"
"""Name of the thread that opens and prepares better engines."""

SIZES_NOTED = 64
"""Sizes to remember as wanted, or as refused, at most: a camera that keeps changing its size cannot fill memory."""

Size = tuple[int, int]

log = logging.getLogger(__name__)


class FallbackEngine(Door):
    """Enhances with the best engine that is ready, and falls back to the next one if that fails.

    Takes the sizes that the last engine takes; that one is never given up.
    """

    def __init__(self, last: Door, better: Mapping[str, Callable[[], Door]]) -> None:
        """`better` opens engines for the same weights by the name of their runtime, best first."""
        self.info = last.info
        self._last = last
        self._better = better
        self._failures = dict.fromkeys([*better, last.info.runtime], 0)
        self._changed = threading.Condition()  # guards all below; held briefly, never while an engine works
        self._opened = False
        self._preferred: Door | None = None  # the better engine that is open and has not failed
        self._wanted: dict[Size, None] = {}  # sizes to prepare the preferred engine for, in order
        self._refused: dict[Size, None] = {}  # sizes that it will never be ready for
        self._loans = Loans(self._changed)
        self._allowed: tuple[int, int] | None = None  # arguments of the last `set_limits`
        self._readying = threading.Thread(target=self._run_better_engines, name=THREAD, daemon=True)

    @property
    def failures(self) -> dict[str, int]:
        """See `Door.failures`."""
        with self._changed:
            return dict(self._failures)

    def __enter__(self) -> Self:
        self._last.__enter__()
        self._opened = True
        self._readying.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._opened = False
            self._loans.clear()
        self._readying.join(EXIT_SECONDS)
        if self._readying.is_alive():
            name = self._readying.name
            log.warning("engine: thread %s did not stop within %g s and was abandoned", name, EXIT_SECONDS)
        self._last.__exit__(kind, error, trace)

    def acquire(self, width: int, height: int, timeout: float | None = None) -> Slot:
        """See `Door.acquire`."""
        engine = self._engine_for((width, height))
        try:
            slot = engine.acquire(width, height, timeout)
        except TimeoutError:
            raise
        except Exception as error:
            if engine is self._last:
                raise
            self._give_up_size(engine, (width, height), error)
            engine = self._last
            slot = engine.acquire(width, height, timeout)
        slot.engine = self  # so that `wait` and `release` come here
        self._loans.lend(slot, engine)
        return slot

    def prepare(self, width: int, height: int) -> None:
        """See `Door.prepare`: prepares the last engine; a better one takes over later."""
        self._engine_for((width, height))
        self._last.prepare(width, height)

    def is_ready(self, width: int, height: int) -> bool:
        """See `Door.is_ready`."""
        return self._last.is_ready(width, height)

    def set_limits(self, slots: int, sizes: int) -> None:
        """See `Door.set_limits`."""
        self._last.set_limits(slots, sizes)
        with self._changed:
            self._allowed = (slots, sizes)
            preferred = self._preferred
        if preferred is not None:
            try:
                preferred.set_limits(slots, sizes)
            except Exception as error:  # its device may be lost already
                self._give_up(preferred, error)

    def new_memory(self) -> Memory:
        """See `Door.new_memory`; any engine for the same weights can use it."""
        return self._last.new_memory()

    def submit(self, slots: Sequence[Slot]) -> None:
        """See `Door.submit`; the slots may come from several engines. `wait` raises what failed, for each picture."""
        with self._changed:
            self._check_open()
            batches = list(self._loans.batches(slots))
        for engine, batch in batches:
            try:
                self._check_in_use(engine)
                self._loans.pass_memories_on(engine, batch, self._last)
                engine.submit([loan.slot for loan in batch])
            except EngineMismatch:
                raise
            except EngineError as error:
                self._give_up(engine, error)
                for loan in batch:
                    loan.failure = error
            else:
                for loan in batch:
                    loan.under_way, loan.failure = True, None

    def wait(self, slot: Slot) -> None:
        """See `Slot.wait`."""
        loan = self._loan_of(slot)
        if loan.failure is not None:
            raise loan.failure
        try:
            loan.engine.wait(slot)
        except EngineError as error:
            self._give_up(loan.engine, error)
            raise
        finally:
            loan.under_way = False

    def release(self, slot: Slot) -> None:
        """See `Slot.release`."""
        loan = self._loans.end(slot)
        if loan is None:  # after exit
            return
        slot.engine = loan.engine
        loan.engine.release(slot)

    def _engine_for(self, size: Size) -> Door:
        """The engine for the next picture of a size; asks for a better one to be prepared if there can be one."""
        with self._changed:
            self._check_open()
            if size in self._refused:
                return self._last
            if self._preferred is not None and self._preferred.is_ready(*size):
                return self._preferred
            if size not in self._wanted:
                note(self._wanted, size)
                self._changed.notify_all()
            return self._last

    def _check_open(self) -> None:
        if not self._opened:
            raise EngineError("the engine is closed: use it inside its `with` block")

    def _check_in_use(self, engine: Door) -> None:
        with self._changed:
            if not self._is_in_use(engine):
                raise EngineError(f"{engine.info.runtime} was given up")

    def _loan_of(self, slot: Slot) -> Loan:
        with self._changed:
            self._check_open()
            return self._loans.of(slot)

    def _run_better_engines(self) -> None:
        """Open the better engines in turn, each once the one before is given up; runs in its own thread."""
        for runtime, opener in self._better.items():
            if not self._opened:
                return
            try:
                engine = WatchedEngine(opener()).__enter__()
            except (EngineMissing, EngineMismatch) as error:
                log.warning("engine: %s cannot be used: %s", runtime, error)
                continue
            except Exception as error:
                self._fail(runtime, error)
                continue
            try:
                self._serve(engine)
            except Exception as error:
                self._give_up(engine, error)
            finally:
                with suppress(Exception):  # an engine that failed may not close cleanly
                    engine.__exit__(None, None, None)

    def _serve(self, engine: Door) -> None:
        """Prefer an engine until it is given up or at exit; returns once all its slots are back."""
        with self._changed:
            self._preferred = engine
            self._refused.clear()
            if self._allowed is not None:
                engine.set_limits(*self._allowed)
        while (size := self._next_wanted(engine)) is not None:
            try:
                engine.prepare(*size)
            except Exception as error:
                self._give_up_size(engine, size, error)
            else:
                self._take_over(engine, size)
        with self._changed:
            self._changed.wait_for(lambda: not self._loans.any_of(engine))

    def _next_wanted(self, engine: Door) -> Size | None:
        """Wait for the next size to prepare, which stays wanted meanwhile; None if the engine is given up or closed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._serves(engine) or self._wanted)
            return next(iter(self._wanted)) if self._serves(engine) else None

    def _serves(self, engine: Door) -> bool:
        return self._opened and engine is self._preferred

    def _is_in_use(self, engine: Door) -> bool:
        return engine in (self._preferred, self._last)

    def _take_over(self, engine: Door, size: Size) -> None:
        with self._changed:
            self._wanted.pop(size, None)
            if not self._serves(engine):
                return
            self.info = engine.info
        log.info("engine: %s takes over %dx%d from %s", engine.info, *size, self._last.info.runtime)

    def _give_up_size(self, engine: Door, size: Size, error: Exception) -> None:
        """Use the last engine for a size from here on; refusing a size does not count as a failure."""
        with self._changed:
            self._wanted.pop(size, None)
            if not self._serves(engine) or size in self._refused:
                return
            note(self._refused, size)
        runtime, where = engine.info.runtime, f" for {size[0]}x{size[1]}"
        if isinstance(error, EngineMismatch):
            self.reason = f"{runtime} is not used{where}: {error}"
            log.warning("engine: falling back to %s: %s", self._last.info.runtime, self.reason)
        else:
            self._fail(runtime, error, where)

    def _give_up(self, engine: Door, error: Exception) -> None:
        """Never use an engine again, unless it is the last one."""
        with self._changed:
            if not self._serves(engine):
                return
            self._preferred = None
            self.info = self._last.info
            self._changed.notify_all()
        self._fail(engine.info.runtime, error)

    def _fail(self, runtime: str, error: Exception, where: str = "") -> None:
        """Report a failure in the log, the metrics and the status."""
        with self._changed:
            self._failures[runtime] += 1
            self.reason = f"{runtime} failed{where}: {error}"
        log.error("engine: falling back to %s: %s", self._last.info.runtime, self.reason)


def is_left_behind() -> bool:
    """Whether a thread that opens or uses an engine is still inside a library, where nothing can interrupt it.

    If the interpreter exits meanwhile, CUDA's libraries end the process with an error.
    """
    return is_busy() or any(thread.name == THREAD for thread in threading.enumerate())


def note(sizes: dict[Size, None], size: Size) -> None:
    """Add a size, and forget the oldest ones beyond `SIZES_NOTED`."""
    sizes[size] = None
    while len(sizes) > SIZES_NOTED:
        del sizes[next(iter(sizes))]
