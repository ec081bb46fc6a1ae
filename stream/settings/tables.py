"""The tables of config.toml, each with its defaults and what it allows."""

from __future__ import annotations

import os
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from engines.choices import Precision, Runtime
from engines.runtime import PRECISIONS
from stream.errors import SettingsError
from stream.settings.complaints import TABLE_MISTAKE
from stream.settings.values import (
    Address,
    BitRate,
    Duration,
    Endpoint,
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
)

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
    """The most frames at once."""
    threads: Annotated[int, between(0, 1_024)] = 0
    """0: all cores that the process may use."""
    parallel: Annotated[int, between(0, 64)] = 0
    """Pictures of different feeds that OpenVINO computes in parallel; 0: chosen by the number of feeds at the start."""
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
    """Whether an NVIDIA GPU encodes. If it cannot, the CPU does; `nvenc` then warns, `auto` does not."""
    bit_rate: BitRate = 2_000_000
    """The upper limit."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium"] = "superfast"
    key_interval: Duration = 2.0
    threads: Annotated[int, between(1, 64)] = 1


class FeedDefaults(Table):
    """All that a feed may leave to `[defaults]`."""

    mode: Literal["live", "replay"] = "live"
    speed: Annotated[float, amount(0.01, 100)] | None = None
    """Of recordings, as a multiple of their own; None: 1 in mode `live`, as fast as possible in mode `replay`."""
    transport: Literal["auto", "udp", "tcp"] = "auto"
    """Of RTSP. `auto`: UDP, and TCP if no packets come."""
    username: str | None = None
    password_file: ReadableFile | None = None
    password_env: SetVariable | None = None
    tls_ca_file: ReadableFile | None = None
    """Certificates (PEM) that must vouch for the source's own with rtsps:// and https://; None: no check."""
    open_timeout: Duration = 5.0
    read_timeout: Duration = 5.0
    receive_buffer: Annotated[int, between(4_096, 2**30)] = 1_048_576
    """Bytes asked from the kernel for UDP."""
    age_budget: Duration = 1.0
    """Older frames are dropped before the network."""
    memory: Memory = 500_000_000
    """Bytes that the feed's pictures may take between decoder and wire; a source whose pictures need more is not
    relayed."""
    publish_source: bool = True
    publish_data: bool = True
    decoder: DecoderChoice = "software"
    """If the GPU cannot decode, the CPU does; `nvdec` then warns, `auto` does not."""
    encoder: EncoderSettings = EncoderSettings()

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if self.password_file and self.password_env:
            raise PydanticCustomError(
                TABLE_MISTAKE, "has both password_file and password_env; it must have one of them at most"
            )
        return self

    def password(self) -> SecretStr | None:
        """The password, read anew from its file or variable; None if neither is set.

        A byte order mark before it and one line end after it are not part of it. Raises `SettingsError` if the file
        cannot be read.
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
