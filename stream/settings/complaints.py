"""One line for each mistake in the settings: where it stands, what was found, what is allowed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stream.address import redact

PREFIX = "NIGHTBRIDGE__"
"""Prefix of the environment variables that are settings."""

ALLOWED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "model_type": "a table",
    "path_type": "a path",
    "string_type": "text",
}
"""By pydantic's type of mistake; other checks bring their own words."""

TABLE_MISTAKE = "table_mistake"
"""Type of a mistake in a table as a whole; its message continues after the table's name."""

Location = tuple[str, ...]
"""Tables from the outside in, then a key: `("feeds", "pier", "url")`."""


def variables() -> set[str]:
    """Names, in capitals, of the environment variables that are settings; an empty one counts as not set."""
    return {name.upper() for name, text in os.environ.items() if text and name.upper().startswith(PREFIX)}


def complaints(error: ValidationError, model: type[BaseModel], tables: Mapping[str, Any], file: str) -> list[str]:
    """A line for each mistake; `tables` is the content of the file named `file`."""
    return [_complaint(mistake, model, tables, file) for mistake in error.errors(include_url=False)]


def _complaint(mistake: ErrorDetails, model: type[BaseModel], tables: Mapping[str, Any], file: str) -> str:
    kind, value, context = mistake["type"], mistake["input"], mistake.get("ctx", {})
    location = tuple(str(part) for part in mistake["loc"])
    reason = str(context.get("error", ALLOWED.get(kind, mistake["msg"])))
    if location[-1] == "[key]":
        place = _place(location[:-1], True, tables, file)
        return f"{place} is not a valid feed name; it must be {reason}"
    if kind == "missing":
        lacking = _place(location, False, tables, file, stated=location[:-1])
        return f"{lacking} is missing" + ("" if lacking.file else f": {file} has no [{_dotted(location[:-1])}]")
    place = _place(location, isinstance(value, dict), tables, file)
    if kind == "extra_forbidden":
        return f"{place} is not a {'table' if place.is_table else 'key'}; {_known(place, model)}"
    if kind == TABLE_MISTAKE:
        return f"{place} {reason}"
    if kind == "literal_error":
        reason = "one of " + ", ".join(re.findall(r"'([^']*)'", context["expected"]))
    return f"{place} is {_found(location[-1], value)}; it must be {reason}"


@dataclass(frozen=True)
class _Place:
    """Where a setting stands; its text begins the line."""

    location: Location
    is_table: bool
    file: str | None
    """None: in the environment."""

    def __str__(self) -> str:
        return f"{self.file or 'environment'}: {self.path}"

    @property
    def path(self) -> str:
        """As shown to people: `[engine] runtime`, `[engine]` or `NIGHTBRIDGE__ENGINE__RUNTIME`."""
        outer = self.location[:-1]
        return f"[{_dotted(outer)}] {self.name}" if self.file and outer and not self.is_table else self.name

    @property
    def name(self) -> str:
        """As it is written where it stands: `runtime`, `[engine]` or `NIGHTBRIDGE__ENGINE__RUNTIME`."""
        if self.file is None:
            return _variable(self.location)
        return f"[{_dotted(self.location)}]" if self.is_table else _dotted(self.location[-1:])

    def beside(self, *names: str, is_table: bool = False) -> _Place:
        """Another place in the same table, or in a table inside it."""
        return replace(self, location=(*self.location[:-1], *names), is_table=is_table)


def _place(
    location: Location, is_table: bool, tables: Mapping[str, Any], file: str, stated: Location | None = None
) -> _Place:
    """The place of what stands at `location`: the environment overrides the file.

    `stated` is what to look for instead if nothing stands at `location`.
    """
    stated = stated or location
    inside = f"{_variable(stated)}__"
    in_environment = _variable(stated) in variables() or (
        not _holds(tables, stated) and any(name.startswith(inside) for name in variables())
    )
    return _Place(location, is_table, None if in_environment else file)


def _variable(location: Location) -> str:
    return PREFIX + "__".join(location).upper()


def _dotted(location: Location) -> str:
    bare = re.compile(r"[A-Za-z0-9_-]+")
    return ".".join(part if bare.fullmatch(part) else json.dumps(redact(part)) for part in location)


def _holds(tables: Any, location: Location) -> bool:
    for part in location:
        if not isinstance(tables, Mapping) or part not in tables:
            return False
        tables = tables[part]
    return True


def _known(place: _Place, model: type[BaseModel]) -> str:
    """A hint at the key that may be meant: the same one in a table inside, the nearest one here, or any."""
    *outer, key = place.location
    table: Any = model
    for part in outer:
        table = get_args(table)[1] if get_origin(table) is dict else table.model_fields[part].annotation
    kinds = {name: field.annotation for name, field in table.model_fields.items()}
    for name, kind in kinds.items():
        if key in getattr(kind, "model_fields", {}):
            return f"did you mean {place.beside(name, key).path}?"
    names = get_close_matches(key, kinds, 1) or list(kinds)
    shown = [place.beside(name, is_table=_is_table(kinds[name])).name for name in names]
    return f"did you mean {shown[0]}?" if len(shown) == 1 else f"it must be one of {', '.join(shown)}"


def _is_table(kind: Any) -> bool:
    return get_origin(kind) is dict or hasattr(kind, "model_fields")


def _found(key: str, value: object) -> str:
    """The value as TOML writes it, shortened, on one line, and without what could be a password."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    if key.startswith("password") and not (key == "password_file" and isinstance(value, str | Path)):
        return "***"
    text = redact(value) if isinstance(value, str) else value
    written = json.dumps(text, ensure_ascii=False, default=str)
    return written if len(written) <= 100 else f"{written[:100]}..."
