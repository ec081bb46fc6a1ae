"""CUDA graphs: the work of a stream, captured once and then started as a whole. Uses cuda-bindings; pycuda has none.

For a small picture, starting a network kernel by kernel takes the host longer than the GPU needs to compute it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

from engines.errors import EngineError

log = logging.getLogger(__name__)


def import_bindings() -> Any:
    """The module `cuda.bindings.driver`; None if it is missing, and then there are no graphs."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        log.info("no CUDA graphs: pip install 'nightbridge[nvidia]' brings cuda-bindings (%s)", error)
        return None


class CapturedGraph:
    """Captured work, which can be started on any stream of the device; freed with its last reference.

    The device must be current when a graph is created, started or freed.
    """

    def __init__(self, bindings: Any, stream: int, work: Callable[[], None]) -> None:
        """Capture what `work` starts on the stream with this handle, without running it.

        Nothing else may be started on that stream meanwhile. Raises `EngineError` if the capture fails, and what `work`
        raises; the stream is left as it was.
        """
        self._bindings, self._graph, self._ready = bindings, None, None
        handle, mode = bindings.CUstream(stream), bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", handle, mode)  # other threads may still allocate memory
        try:
            work()
        except BaseException:
            _, self._graph = bindings.cuStreamEndCapture(handle)  # whatever it returns: the capture must end
            raise
        self._graph = self._call("cuStreamEndCapture", handle)
        self._ready = self._call("cuGraphInstantiate", self._graph, 0)

    def launch(self, stream: int) -> None:
        """Start the graph on the stream with this handle."""
        self._call("cuGraphLaunch", self._ready, self._bindings.CUstream(stream))

    def _call(self, name: str, *arguments: object) -> Any:
        """The single result of a driver call, or None; raises `EngineError` if it fails."""
        code, *results = getattr(self._bindings, name)(*arguments)
        if code != self._bindings.CUresult.CUDA_SUCCESS:
            raise EngineError(f"{name} failed: {code.name}")
        return results[0] if results else None

    def __del__(self) -> None:
        if self._ready is not None:
            self._bindings.cuGraphExecDestroy(self._ready)
        if self._graph is not None:
            self._bindings.cuGraphDestroy(self._graph)
