"""`nightbridge keys`: makes key pairs for an encrypted wire."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer


def as_name(text: str) -> str:
    """The name of a relay or a viewer, fit for a file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise typer.BadParameter(
            f"{text!r}; must be 1 to 64 of A-Z, a-z, 0-9, '.', _ and -, beginning with a letter or digit"
        )
    return text


def keys(
    names: Annotated[
        list[str], typer.Argument(parser=as_name, metavar="NAME...", help="Names of the relay and of each viewer.")
    ],
    out: Annotated[
        Path, typer.Option(exists=True, file_okay=False, metavar="DIR", help="Folder for the files.")
    ] = Path(),
) -> None:
    """Make a CURVE key pair for each NAME: NAME.key, which is public, and NAME.key_secret, for its owner alone.

    Existing keys are never replaced; the others are made all the same.
    """
    from stream.errors import StreamError
    from stream.wire.keys import make_keys

    kept: list[str] = []
    for name in names:
        try:
            public, secret = make_keys(name, out)
        except FileExistsError as error:
            kept.append(f"{error.filename}: {error.strerror}")
        else:
            typer.echo(f"{public} is public; {secret} is for {name} alone")
    if kept:
        raise StreamError("\n".join(kept))
