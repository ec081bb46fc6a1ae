"""What a stream is given, captured once and then started as a whole: by cuda-bindings, since pycuda cannot.

Starting a network kernel by kernel costs the host more than the GPU needs for a small picture.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

from engines.errors import EngineError

log = logging.getLogger(__name__)


def import_bindings() -> Any:
    """The module `cuda.bindings.driver`; None where it is missing, and everything is started step by step."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        log.info("no CUDA graphs: pip install 'nightbridge[nvidia]' brings cuda-bindings (%s)", error)
        return None


class CapturedGraph:
    """Captured work, to be started on any stream of the device; freed with its last reference.

    The device must be current whenever it is made, started or freed.
    """

    def __init__(self, bindings: Any, stream: int, work: Callable[[], None]) -> None:
        """Capture what `work` gives the stream of this handle, on which nothing else is started meanwhile.

        Nothing of it runs yet. Raises `EngineError` where it cannot be captured, and whatever `work` raises; the stream
        is as it was then.
        """
        self._bindings, self._graph, self._ready = bindings, None, None
        handle, mode = bindings.CUstream(stream), bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", handle, mode)  # other threads may go on taking memory
        try:
            work()
        except BaseException:
            _, self._graph = bindings.cuStreamEndCapture(handle)  # whatever it says: the stream must not stay as it is
            raise
        self._graph = self._call("cuStreamEndCapture", handle)
        self._ready = self._call("cuGraphInstantiate", self._graph, 0)

    def launch(self, stream: int) -> None:
        """Start it on the stream of this handle."""
        self._call("cuGraphLaunch", self._ready, self._bindings.CUstream(stream))

    def _call(self, name: str, *arguments: object) -> Any:
        """The one result of a driver call; raises `EngineError` where it fails."""
        code, *results = getattr(self._bindings, name)(*arguments)
        if code != self._bindings.CUresult.CUDA_SUCCESS:
            raise EngineError(f"{name} failed: {code.name}")
        return results[0] if results else None

    def __del__(self) -> None:
        if self._ready is not None:
            self._bindings.cuGraphExecDestroy(self._ready)
        if self._graph is not None:
            self._bindings.cuGraphDestroy(self._graph)
