"""The TensorRT library: full TensorRT or TensorRT-RTX, which share a Python interface, and their messages."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from engines.errors import EngineMissing

TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
"""By module name, the preferred one first."""
OLDEST = {"tensorrt": (10, 1), "tensorrt_rtx": (1, 0)}
"""Oldest versions supported: older ones lack strongly typed networks, or have other calls."""
INSTALL = "pip install 'nightbridge[nvidia]' brings TensorRT-RTX"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Library:
    """An imported TensorRT."""

    module: Any
    """`tensorrt` or `tensorrt_rtx`."""
    name: str
    """Name of the module."""
    version: str

    def __str__(self) -> str:
        return f"{TITLES[self.name]} {self.version}"

    @property
    def times_kernels(self) -> bool:
        """Whether it chooses kernels by timing them on the GPU when it builds; TensorRT-RTX compiles when it runs."""
        return self.name == "tensorrt"


def import_tensorrt() -> Library:
    """TensorRT if it is installed, else TensorRT-RTX; raises `EngineMissing` if there is neither."""
    reasons = []
    for name in TITLES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a shared library of its own is missing
            reasons.append(f"{name}: {error}")
            continue
        version = str(module.__version__)
        major, minor, *_ = (int(number) for number in re.findall(r"\d+", f"{version}.0"))
        if (major, minor) >= OLDEST[name]:
            return Library(module, name, version)
        reasons.append(f"{name} {version} is too old: it must be {'.'.join(map(str, OLDEST[name]))} or newer")
    raise EngineMissing(f"no usable TensorRT: {INSTALL} ({'; '.join(reasons)})")


def message_log(library: Library) -> Any:
    """The `ILogger` of this process, for everything made with the library, which takes only one.

    Its warnings go to `logging`, and so do errors unless they are collected.
    """
    return _message_log(library.module)


@cache
def _message_log(module: Any) -> Any:
    levels = module.ILogger.Severity

    class MessageLog(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.collections: list[list[str]] = []

        def log(self, severity: object, message: str) -> None:
            failed = severity in (levels.INTERNAL_ERROR, levels.ERROR)
            if failed and self.collections:
                for collection in self.collections:
                    collection.append(message.strip())
            else:
                level = logging.ERROR if failed else logging.WARNING if severity == levels.WARNING else logging.DEBUG
                log.log(level, "%s: %s", TITLES.get(module.__name__), message.strip())

    return MessageLog()


@contextmanager
def collected_errors(library: Library) -> Iterator[list[str]]:
    """A list that collects the library's error messages, from any thread, inside the `with` block."""
    collections: list[list[str]] = message_log(library).collections
    errors: list[str] = []
    collections.append(errors)
    try:
        yield errors
    finally:
        collections[:] = [other for other in collections if other is not errors]
