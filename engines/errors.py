"""What can go wrong with an engine.

EngineError
 ├── EngineMissing    a runtime, a package or a device that is asked for is not here
 │    └── UnknownName there are no weights, or no recipe, of this name
 └── EngineMismatch   weights, a size, a precision or a call that does not fit the engine
"""

from __future__ import annotations


class EngineError(Exception):
    """The engine failed; the message says how."""


class EngineMissing(EngineError):
    """Something that must be installed or plugged in first; the message says what."""


class UnknownName(EngineMissing):
    """Wrong use: nothing here has this name; the message names it, and those that there are."""


class EngineMismatch(EngineError, ValueError):
    """The caller asks for what this engine cannot take; the message names the value and what is allowed."""
