"""Options of the commands that subscribe: which keys they show to an encrypted relay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stream.subscribe import ViewerKeys

RelayKey = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="File with the public key of an encrypted relay."),
]
SecretKey = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="File with this viewer's secret key, for an encrypted relay."),
]


def viewer_keys(relay_key: Path | None, secret_key: Path | None) -> ViewerKeys | None:
    """Both keys, or none for a relay that is not encrypted."""
    from stream.subscribe import ViewerKeys

    if relay_key is None and secret_key is None:
        return None
    if relay_key is None or secret_key is None:
        raise typer.BadParameter("an encrypted relay needs both --relay-key and --secret-key")
    return ViewerKeys(relay_key, secret_key)
