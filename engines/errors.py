"""What can go wrong with an engine.

EngineError
 ├── EngineMissing    a runtime, a package or a device that is asked for is not here
 └── EngineMismatch   weights, a size, a precision or a call that does not fit the engine
"""

from __future__ import annotations


class EngineError(Exception):
    """The engine failed; the message says how."""


class EngineMissing(EngineError):
    """Something that must be installed or plugged in first; the message says what."""


class EngineMismatch(EngineError, ValueError):
    """The caller asks for what this engine cannot take; the message names the value and what is allowed."""
