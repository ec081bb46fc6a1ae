"""Typed settings: the tables of config.toml, which environment variables override.

`NIGHTBRIDGE__ENGINE__RUNTIME=openvino` stands above `runtime` in `[engine]`. The JSON form of each
model (`model_dump(mode="json")`) is fit to be shown: durations have units and URLs no credentials.
"""

from __future__ import annotations

import os
import tomllib
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from engines.cards import find_weights
from engines.choices import Precision, Runtime
from engines.errors import EngineError
from engines.runtime import PRECISIONS
from stream.address import UdpAddress, is_udp, redact, split_credentials
from stream.complaints import PREFIX, TABLE_MISTAKE, complaints, variables
from stream.errors import SettingsError
from stream.values import (
    Address,
    BitRate,
    Duration,
    Endpoint,
    FeedName,
    FolderToBe,
    HostPort,
    KeysFolder,
    Memory,
    ReadableFile,
    SecretKeyFile,
    SetVariable,
    Weights,
    amount,
    between,
    read_from,
)

__all__ = [
    "BitRate",
    "CurveSettings",
    "DecoderChoice",
    "Duration",
    "EncoderSettings",
    "EngineSettings",
    "FeedDefaults",
    "FeedSettings",
    "RelaySettings",
    "Settings",
    "load_settings",
    "low_mark",
    "redact",
    "require_weights",
]

MESSAGES_OF_A_FEED = 4
"""That it may publish at one moment, one of each kind."""

DecoderChoice = Literal["software", "nvdec", "auto"]
"""What decodes: the CPU, an NVIDIA GPU, or the GPU where it can."""


class Table(BaseModel):
    """A table of config.toml: frozen, without unknown keys, and without silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class CurveSettings(Table):
    """Keys of the relay; without them the wire is not encrypted."""

    server_secret_key_file: SecretKeyFile | None = None
    client_keys_folder: KeysFolder | None = None
    """Public keys of the viewers that are let in; None: all that know the relay's public key."""

    @model_validator(mode="after")
    def _clients_need_a_server_key(self) -> Self:
        if self.client_keys_folder and not self.server_secret_key_file:
            raise PydanticCustomError(
                TABLE_MISTAKE, "has client_keys_folder alone; it must have server_secret_key_file too"
            )
        return self


class RelaySettings(Table):
    """Where the relay publishes, and what it keeps for slow viewers."""

    endpoint: Endpoint = "tcp://127.0.0.1:5560"
    high_water_mark: Annotated[int, between(1, 100_000)] = 64
    """Messages that may wait for one viewer."""
    send_buffer: Annotated[int, between(1_024, 2**30)] = 65_536
    """Bytes, in the kernel, for each viewer."""
    stop_timeout: Duration = 2.0
    metrics: HostPort | None = None
    """Where `/metrics` and `/status` are served over HTTP; None: nowhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    curve: CurveSettings = CurveSettings()

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.metrics is None or not self.endpoint.startswith("tcp://"):
            return self
        (host, _, port), (other, _, metrics_port) = (
            place.rpartition(":") for place in (self.endpoint.removeprefix("tcp://"), self.metrics)
        )
        everywhere = {"*", "0.0.0.0", "[::]"}  # noqa: S104 - it is only compared with
        if port == metrics_port != "0" and (host == other or {host, other} & everywhere):
            raise PydanticCustomError(
                TABLE_MISTAKE,
                "has endpoint and metrics at TCP port {port}; each must have a port or an address of its own",
                {"port": port},
            )
        return self


class EngineSettings(Table):
    """Which engine enhances the frames of all feeds."""

    runtime: Runtime = "auto"
    weights: Weights = "field"
    precision: Precision = "auto"
    batch: Annotated[int, between(1, 32)] = 8
    """Frames at once, at most."""
    threads: Annotated[int, between(0, 1_024)] = 0
    """0: all cores that the process may use."""
    parallel: Annotated[int, between(0, 64)] = 0
    """Pictures of different feeds that OpenVINO computes side by side; 0: as the number of feeds at the start asks."""
    cache: FolderToBe | None = None
    """None: the user's cache folder."""

    @model_validator(mode="after")
    def _precision_of_the_runtime(self) -> Self:
        allowed = ("auto", *PRECISIONS.get(self.runtime, (self.precision,)))
        if self.precision not in allowed:
            raise PydanticCustomError(
                TABLE_MISTAKE,
                "has runtime {runtime} with precision {precision}; with that runtime it must be one of {allowed}",
                {"runtime": self.runtime, "precision": self.precision, "allowed": ", ".join(allowed)},
            )
        return self


class EncoderSettings(Table):
    """How enhanced pictures are encoded."""

    codec: Literal["h264", "hevc", "av1"] = "h264"
    hardware: Literal["none", "nvenc", "auto"] = "none"
    """NVIDIA GPU that encodes; `auto`: where it can. The CPU does where it cannot, and `nvenc` warns of that."""
    bit_rate: BitRate = 2_000_000
    """The most it may take."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium"] = "superfast"
    key_interval: Duration = 2.0
    threads: Annotated[int, between(1, 64)] = 1


class FeedDefaults(Table):
    """All that a feed may leave to `[defaults]`."""

    mode: Literal["live", "replay"] = "live"
    speed: Annotated[float, amount(0.01, 100)] | None = None
    """Of recordings, as a multiple of their own; None: as live in mode `live`, as fast as it goes in mode `replay`."""
    transport: Literal["auto", "udp", "tcp"] = "auto"
    """Of RTSP. `auto`: UDP, and TCP where no packets come."""
    username: str | None = None
    password_file: ReadableFile | None = None
    password_env: SetVariable | None = None
    tls_ca_file: ReadableFile | None = None
    """Certificates (PEM) that vouch for the source's own, by rtsps:// and https://; None: its own is not checked."""
    open_timeout: Duration = 5.0
    read_timeout: Duration = 5.0
    receive_buffer: Annotated[int, between(4_096, 2**30)] = 1_048_576
    """Bytes asked from the kernel for UDP."""
    age_budget: Duration = 1.0
    """Older frames are dropped before the network."""
    memory: Memory = 400_000_000
    """Bytes that the feed's pictures may take between decoder and wire; a source whose pictures are too large for it
    is not relayed."""
    publish_source: bool = True
    publish_data: bool = True
    decoder: DecoderChoice = "software"
    """The CPU does what the GPU cannot, and `nvdec` warns of that."""
    encoder: EncoderSettings = EncoderSettings()

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if self.password_file and self.password_env:
            raise PydanticCustomError(
                TABLE_MISTAKE, "has both password_file and password_env; it must have one of them at most"
            )
        return self

    def password(self) -> SecretStr | None:
        """The password as it is now in its file or variable; None where neither is named.

        A byte order mark in front of it and one line end after it are no part of it. Raises `SettingsError` if it
        cannot be read any more.
        """
        if self.password_env:
            return SecretStr(os.environ.get(self.password_env, ""))
        if self.password_file is None:
            return None
        try:
            text = self.password_file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it must be UTF-8 text"
            raise SettingsError(f"password file {self.password_file}: {reason}") from None
        return SecretStr(text.removesuffix("\n").removesuffix("\r"))


class FeedSettings(FeedDefaults):
    """One feed: its own table over `[defaults]`."""

    url: Address = Field(repr=False)
    """May hold raw credentials: show `redact(url)`."""


class Settings(BaseSettings):
    """Everything that can be set. Without arguments: the defaults, and what the environment says of all but feeds."""

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
        """Put each feed's table over `[defaults]`; wrong defaults are told once, and not inherited."""
        defaults = info.data.get("defaults")
        if defaults is None or not isinstance(feeds, dict):
            return feeds
        inherited = defaults.model_dump(mode="json", exclude_unset=True)
        return {name: _over(inherited, feed) for name, feed in feeds.items()}

    @field_validator("feeds")
    @classmethod
    def _one_feed_of_a_port(cls, feeds: dict[str, FeedSettings]) -> dict[str, FeedSettings]:
        """Two sockets cannot share a port of UDP, groups aside."""
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
        """Environment variables first, then the file; no other source. Without a table of feeds those of feeds mean
        nothing."""
        environment, given = cast("EnvSettingsSource", env_settings), cast("InitSettingsSource", init_settings)
        if "feeds" not in given.init_kwargs:
            of_feeds = f"{PREFIX}FEEDS__".lower()
            texts = environment.env_vars.items()
            environment.env_vars = {name: text for name, text in texts if not name.startswith(of_feeds)}
        return environment, given


def _over(inherited: dict[str, Any], table: Any) -> Any:
    """What is inherited with `table` laid over it; whatever is no table stays as it is, to be complained of."""
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
    """The inherited credentials that mean nothing beside a table's own, which its address may hold."""
    url = table.get("url")
    credentials = split_credentials(url.partition("://")[2])[0] if isinstance(url, str) else ""
    passwords = {"password_file", "password_env"}
    replaced = passwords if ":" in credentials or passwords & table.keys() else set()
    return replaced | {"username"} if credentials else replaced


def load_settings(path: Path | None) -> Settings:
    """The settings in the file at `path`, with environment variables over them; for None the defaults, and no feeds.

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
    """Raise `SettingsError`, which begins with `label`, where the files are not there that the engine will read."""
    try:
        find_weights(engine.weights).require(engine.runtime, engine.precision)
    except EngineError as error:
        raise SettingsError(f"{label} {error}") from None
    except OSError as error:
        raise SettingsError(f"{label} {error.filename}: {error.strerror}") from None


def low_mark(high_water_mark: int, feeds: int) -> str | None:
    """What is wrong, in one line, where that mark leaves no room for what so many feeds publish at one moment."""
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
    except ValueError as error:  # says at which line
        raise SettingsError(f"{path}: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path}: too many brackets inside one another") from None


def _require_text() -> None:
    """Raise `SettingsError` for a variable that is no UTF-8: pydantic-settings would not say which one."""
    for name, text in os.environ.items():
        if name.upper().startswith(PREFIX) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise SettingsError(f"environment: {name} must be UTF-8 text") from None


def _unknown_sections() -> set[str]:
    """First parts of variables that mean nothing; pydantic-settings would not look at them."""
    sections = {name.removeprefix(PREFIX).partition("__")[0].lower() for name in variables()}
    return sections - Settings.model_fields.keys()
