"""Results of a command: lines for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def require_folder(path: Path | None) -> Path | None:
    """The path of a file to be written; its folder must exist before any work is done."""
    if path is not None and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{path}: its folder does not exist")
    return path


JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        dir_okay=False,
        callback=require_folder,
        metavar="FILE",
        help="Write it to FILE, too, as a JSON object.",
    ),
]


def print_values(console: Console, values: Mapping[str, object]) -> None:
    """Print one line per value, names in one column; nested values have dotted names."""
    lines = list(_flat(plain(values)))
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        console.print(f"{name:<{width}}  {value}", markup=False, highlight=False, soft_wrap=True)


def in_columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def write_json(path: Path | None, values: Mapping[str, object]) -> None:
    """Write the values as one JSON object; readers find the file complete, or as it was before.

    Without a path nothing is written. Raises `OSError`.
    """
    if path is None:
        return
    text = json.dumps(plain(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode(errors="backslashreplace"))  # file names may not be UTF-8; JSON has the same escapes


def write_whole(path: Path, content: bytes) -> None:
    """Write a file; readers find it complete, or as it was before. Raises `OSError` with its name.

    If it is the file that stdout or stderr leads to, such as `/dev/stdout`, the content is appended there.
    """
    target = path.resolve()
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        for descriptor in (1, 2):
            if leads_to(path, descriptor):
                print(end="", flush=True)
                with open(descriptor, "wb", closefd=False) as output:
                    output.write(content)
                return
        if path.exists() and not path.is_file():  # a named pipe or a device
            path.write_bytes(content)
            return
        try:
            fresh.write_bytes(content)
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def leads_to(path: Path, descriptor: int) -> bool:
    """Whether a path leads to the file that this descriptor has open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:  # one of them is not there
        return False


def plain(value: object) -> object:
    """The value in JSON's types: NumPy numbers become numbers, NaN and infinity None, other things text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    number = getattr(value, "item", None)
    return plain(number()) if callable(number) else str(value)


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, float):
        yield name, f"{value:.6g}"
    elif value is None or value == [] or value == {}:
        yield name, "-"
    else:
        yield name, str(value).lower() if isinstance(value, bool) else str(value)
