"""Settings as a whole: read from a file, and overridden by environment variables.

`NIGHTBRIDGE__ENGINE__RUNTIME=openvino` overrides `runtime` in `[engine]`.
"""

from __future__ import annotations

import os
import tomllib
from itertools import combinations
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from engines.cards import find_weights
from engines.errors import EngineError
from stream.address import UdpAddress, is_udp, split_credentials
from stream.errors import SettingsError
from stream.settings.complaints import PREFIX, TABLE_MISTAKE, complaints, variables
from stream.settings.tables import EngineSettings, FeedDefaults, FeedSettings, RelaySettings
from stream.settings.values import FeedName, read_from

MESSAGES_OF_A_FEED = 4
"""The most that a feed publishes at one moment: one of each kind."""


class Settings(BaseSettings):
    """Everything that can be set. Without arguments: the defaults, overridden by the environment, and no feeds."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        enable_decoding=False,
    )

    relay: RelaySettings = RelaySettings()
    engine: EngineSettings = EngineSettings()
    defaults: FeedDefaults = FeedDefaults()
    feeds: dict[FeedName, FeedSettings] = {}

    @field_validator("feeds", mode="before")
    @classmethod
    def _inherit(cls, feeds: Any, info: ValidationInfo) -> Any:
        """Put each feed's table over `[defaults]`; wrong defaults are reported once, and not inherited."""
        defaults = info.data.get("defaults")
        if defaults is None or not isinstance(feeds, dict):
            return feeds
        inherited = defaults.model_dump(mode="json", exclude_unset=True)
        return {name: _over(inherited, feed) for name, feed in feeds.items()}

    @field_validator("feeds")
    @classmethod
    def _one_feed_of_a_port(cls, feeds: dict[str, FeedSettings]) -> dict[str, FeedSettings]:
        """Refuse feeds that would share a UDP port at one address; only multicast groups can."""
        over_udp = {name: UdpAddress.of(feed.url) for name, feed in feeds.items() if is_udp(feed.url)}
        for (one, first), (other, second) in combinations(over_udp.items(), 2):
            if first.excludes(second):
                raise PydanticCustomError(
                    TABLE_MISTAKE,
                    "has {one} and {other} at UDP port {port}; each must have a port or an address of its own",
                    {"one": one, "other": other, "port": first.port},
                )
        return feeds

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment variables first, then the file; no other source. Without a table of feeds, variables of feeds
        are ignored."""
        environment, given = cast("EnvSettingsSource", env_settings), cast("InitSettingsSource", init_settings)
        if "feeds" not in given.init_kwargs:
            of_feeds = f"{PREFIX}FEEDS__".lower()
            texts = environment.env_vars.items()
            environment.env_vars = {name: text for name, text in texts if not name.startswith(of_feeds)}
        return environment, given


def _over(inherited: dict[str, Any], table: Any) -> Any:
    """`inherited` with `table` laid over it; anything but a table is returned as it is, for validation to report."""
    if not isinstance(table, dict):
        return table
    merged = inherited | table
    for key in inherited.keys() & table.keys():
        if isinstance(inherited[key], dict):
            merged[key] = _over(inherited[key], table[key])
    for key in _replaced(table) - table.keys():
        merged.pop(key, None)
    return merged


def _replaced(table: dict[str, Any]) -> set[str]:
    """The inherited credentials that a table's own replace, which may be in its address."""
    url = table.get("url")
    credentials = split_credentials(url.partition("://")[2])[0] if isinstance(url, str) else ""
    passwords = {"password_file", "password_env"}
    replaced = passwords if ":" in credentials or passwords & table.keys() else set()
    return replaced | {"username"} if credentials else replaced


def load_settings(path: Path | None) -> Settings:
    """The settings in the file at `path`, or the defaults without feeds (None), overridden by environment variables.

    Raises `SettingsError`; its message has one line for each mistake.
    """
    _require_text()
    tables = {"feeds": {}} | _read(path) if path else {}
    known = tables | {name: {} for name in _unknown_sections() if name not in tables}
    label = str(path) if path else "environment"
    try:
        with read_from(path.parent.absolute() if path else Path.cwd()):
            settings = Settings(**known)
    except ValidationError as error:
        raise SettingsError("\n".join(complaints(error, Settings, tables, label))) from None
    return settings


def require_weights(engine: EngineSettings, label: str) -> None:
    """Raise `SettingsError`, whose message begins with `label`, if files that the engine will read are missing."""
    try:
        find_weights(engine.weights).require(engine.runtime, engine.precision)
    except EngineError as error:
        raise SettingsError(f"{label} {error}") from None
    except OSError as error:
        raise SettingsError(f"{label} {error.filename}: {error.strerror}") from None


def high_water_mark_warning(high_water_mark: int, feeds: int) -> str | None:
    """A line that says what is wrong if the mark is below what so many feeds publish at one moment; else None."""
    needed = MESSAGES_OF_A_FEED * feeds
    if needed <= high_water_mark:
        return None
    return f"[relay] high_water_mark is {high_water_mark}; {feeds} feeds need {needed}, or viewers lose messages"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: it must be UTF-8 text") from None
    except ValueError as error:  # its message gives the line
        raise SettingsError(f"{path}: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path}: brackets are nested too deeply") from None


def _require_text() -> None:
    """Raise `SettingsError` for a variable that is not UTF-8: pydantic-settings would not say which one."""
    for name, text in os.environ.items():
        if name.upper().startswith(PREFIX) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise SettingsError(f"environment: {name} must be UTF-8 text") from None


def _unknown_sections() -> set[str]:
    """First parts of variables that match no table, which pydantic-settings would ignore."""
    sections = {name.removeprefix(PREFIX).partition("__")[0].lower() for name in variables()}
    return sections - Settings.model_fields.keys()
