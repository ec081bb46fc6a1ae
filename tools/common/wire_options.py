"""Options of the commands that publish and subscribe: the endpoint, and keys for an encrypted relay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stream.subscribe import ViewerKeys


def as_endpoint(text: str) -> str:
    """A ZeroMQ endpoint."""
    from pydantic import TypeAdapter, ValidationError

    from stream.settings.values import Endpoint

    try:
        return TypeAdapter[str](Endpoint).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r}; must be {error.errors()[0]['ctx']['error']}") from None


def as_feed_name(text: str) -> str:
    """The name of a feed."""
    from pydantic import TypeAdapter, ValidationError

    from stream.settings.values import FeedName

    try:
        return TypeAdapter[str](FeedName).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r}; must be {error.errors()[0]['ctx']['error']}") from None


Endpoint = Annotated[
    str,
    typer.Argument(
        parser=as_endpoint, metavar="ENDPOINT", help="Where the relay publishes, such as tcp://10.0.0.2:5560."
    ),
]
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
