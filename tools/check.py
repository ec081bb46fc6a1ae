"""`nightbridge check`: are the settings right, and what are they?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings file.")] = Path("config.toml"),
) -> None:
    """Validate the settings and print the effective ones: defaults, file and environment, secrets hidden."""
    from stream.settings import high_water_mark_warning, load_settings, require_weights

    settings = load_settings(config)
    require_weights(settings.engine, f"{config}: [engine]")
    if low := high_water_mark_warning(settings.relay.high_water_mark, len(settings.feeds)):
        typer.echo(f"nightbridge: {config}: {low}", err=True)
    for name, feed in settings.feeds.items():
        if "://" not in feed.url and is_missing(Path(feed.url)):
            typer.echo(
                f"nightbridge: {config}: [feeds.{name}] url is the path {feed.url}, which does not exist yet; "
                "the address of a camera begins with rtsp:// or udp://",
                err=True,
            )
    typer.echo("\n".join(as_toml(settings.model_dump(mode="json"))).lstrip())


def is_missing(path: Path) -> bool:
    """Whether nothing is at a path; False if that cannot be told."""
    try:
        return not path.exists()
    except OSError:
        return False


def as_toml(table: dict[str, Any], name: str = "") -> Iterator[str]:
    """The lines of a table and the tables inside it; what is not set is a comment, since TOML has no null."""
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    if len(inner) < len(table):
        yield f"\n[{name}]"
    for key, value in table.items():
        if key not in inner:
            yield f"# {key} is not set" if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in inner.items():
        yield from as_toml(value, f"{name}.{key}" if name else key)
