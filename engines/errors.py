"""The errors that engines raise.

EngineError
 ├── EngineMissing    a requested runtime, package or device is not available
 │    └── UnknownName no weights, file or recipe of this name
 └── EngineMismatch   weights, a size, a precision or a call that does not fit the engine
"""

from __future__ import annotations


class EngineError(Exception):
    """The engine failed; the message says how."""


class EngineMissing(EngineError):
    """Something that must be installed or plugged in first; the message says what."""


class UnknownName(EngineMissing):
    """Wrong use: the requested name is not available; the message gives those that are."""


class EngineMismatch(EngineError, ValueError):
    """The engine cannot take a value; the message gives the value and what is allowed."""
