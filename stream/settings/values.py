"""Types of the values in settings: how each is written, what it allows, and what of it may be shown."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from engines.cards import find_weights, shipped
from engines.errors import EngineMismatch, EngineMissing
from stream.address import address_of, form_of, redact
from stream.errors import SourceUnsupported
from stream.wire.keys import check_public_keys, read_keys

SCHEMES = ("file", "http", "https", "rtsp", "rtsps", "udp")
"""URL schemes of the addresses that a source may have; a plain path has none."""
LARGEST_PORT = 65_535

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60}
_BIT_RATE = re.compile(r"(\d+(?:\.\d+)?)([kM])")
_BITS = {"k": 1_000, "M": 1_000_000}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)(MB|GB)")
_BYTES = {"MB": 1_000_000, "GB": 1_000_000_000}

_folder: ContextVar[Path | None] = ContextVar("_folder", default=None)


@contextmanager
def read_from(folder: Path) -> Iterator[None]:
    """Inside the block, values are taken as a user wrote them: paths relative to `folder`, durations with units."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def between(low: int, high: int) -> BeforeValidator:
    """A check for whole numbers from `low` to `high`, both included."""

    def check(value: object) -> int:
        if type(value) is int and low <= value <= high:
            return value
        raise ValueError(f"a whole number from {low} to {high}")

    return BeforeValidator(check)


def amount(low: float, high: float) -> BeforeValidator:
    """A check for numbers from `low` to `high`, both included."""

    def check(value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        raise ValueError(f"a number from {low:g} to {high:g}")

    return BeforeValidator(check)


def matching(pattern: str, allowed: str) -> AfterValidator:
    """A check for text that matches `pattern` from end to end; `allowed` describes that in words."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value):
            return value
        raise ValueError(allowed)

    return AfterValidator(check)


def _seconds(value: object) -> float:
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool) and _folder.get() is None:
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        seconds = round(float(match[1]) * _SECONDS[match[2]], 9)
    if 0.001 <= seconds <= 1800:
        return seconds
    raise ValueError('a duration such as "500ms", "10s" or "2m", from 1ms to 30m')


def _duration(seconds: float) -> str:
    if seconds % 60 == 0:
        return f"{seconds / 60:.0f}m"
    return f"{seconds:.0f}s" if seconds % 1 == 0 else f"{seconds * 1000:.12g}ms"


def bits_from(lowest: int) -> BeforeValidator:
    """A check for bit rates of at least `lowest` bits per second, written "800k" or "2M"."""

    def check(value: object) -> int:
        bits = value if type(value) is int else 0
        if isinstance(value, str) and (match := _BIT_RATE.fullmatch(value)):
            bits = round(float(match[1]) * _BITS[match[2]])
        if lowest <= bits <= 1_000_000_000:
            return bits
        raise ValueError(f'a bit rate such as "800k" or "2M", from {_bit_rate(lowest)} to 1000M')

    return BeforeValidator(check)


def _bit_rate(bits: int) -> str | int:
    for unit in ("M", "k"):
        if bits % _BITS[unit] == 0:
            return f"{bits // _BITS[unit]}{unit}"
    return bits


def _bytes(value: object) -> int:
    count = value if type(value) is int and _folder.get() is None else 0
    if isinstance(value, str) and (match := _MEMORY.fullmatch(value)):
        count = round(float(match[1]) * _BYTES[match[2]])
    if 1_000_000 <= count <= 64_000_000_000:
        return count
    raise ValueError('an amount of memory such as "128MB" or "1.5GB", from 1MB to 64GB')


def _memory(count: int) -> str:
    return f"{count / _BYTES['MB']:.12g}MB"


def _beside(path: Path) -> Path:
    folder = _folder.get()
    return path if folder is None else folder / path


def _readable_file(path: Path) -> Path:
    path = _beside(path)
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"a file that can be read ({path.absolute()}: {error.strerror})") from None
    return path


def _readable_folder(path: Path) -> Path:
    path = _beside(path)
    try:
        os.scandir(path).close()
    except OSError as error:
        raise ValueError(f"a folder that can be read ({path.absolute()}: {error.strerror})") from None
    return path


def _address(url: str) -> str:
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", url, re.IGNORECASE)
    known = scheme is None or scheme[1].lower() in SCHEMES
    text = url if scheme else url.encode(errors="replace").decode()  # file names need not be UTF-8
    if not known or not text.isprintable() or not url.strip() or (scheme is None and redact(url) != url):
        starts = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"a path, or an address that begins with one of {starts}")
    if scheme and scheme[1].lower() != "file":
        try:
            address_of(url)
        except SourceUnsupported:
            raise ValueError(form_of(url)) from None
    return url if scheme else str(_beside(Path(url)))


def _listenable(address: str) -> str:
    host, _, port = address.rpartition(":")
    if int(port) > LARGEST_PORT:
        raise ValueError(f"HOST:PORT with a port from 0 to {LARGEST_PORT}")
    try:
        host.encode("idna")  # as a lookup does
    except UnicodeError:
        raise ValueError("HOST:PORT with a host whose parts have 1 to 63 letters") from None
    return address


def _endpoint(endpoint: str) -> str:
    port = endpoint.rpartition(":")[2]
    if endpoint.startswith("tcp://") and port != "*" and int(port) > LARGEST_PORT:
        raise ValueError(f"tcp://HOST:PORT with a port from 0 to {LARGEST_PORT}")
    return endpoint


def _variable(name: str) -> str:
    if not os.environ.get(name):
        raise ValueError("the name of an environment variable that is set")
    return name


def _weights(name: str) -> str:
    place = str(_beside(Path(name))) if "/" in name or "." in name else name
    try:
        find_weights(place)
    except EngineMissing:
        raise ValueError(f"one of {', '.join(shipped())}, or a folder of weights") from None
    except EngineMismatch as error:
        raise ValueError(f"weights that can be read ({error})") from None
    except OSError as error:
        raise ValueError(f"weights that can be read ({error.filename}: {error.strerror})") from None
    return place


def _folder_to_be(path: Path) -> Path:
    path = _beside(path)
    try:
        nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    except OSError as error:
        raise ValueError(f"a folder, or where one can be made ({error.filename}: {error.strerror})") from None
    if not nearest.is_dir():
        raise ValueError(f"a folder, or where one can be made ({nearest} is not a folder)")
    return path


def _secret_key_file(path: Path) -> Path:
    path = _readable_file(path)
    try:
        _, secret = read_keys(path)
    except ValueError:
        secret = None
    if secret is None:
        raise ValueError("a file with a secret key, as `nightbridge keys` makes them")
    return path


def _keys_folder(path: Path) -> Path:
    path = _readable_folder(path)
    try:
        check_public_keys(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"a folder whose .key files hold public keys ({error})") from None
    return path


Duration = Annotated[float, BeforeValidator(_seconds), PlainSerializer(_duration, when_used="json")]
"""Seconds; written "500ms", "10s" or "2m"."""

BitRate = Annotated[int, bits_from(4_000), PlainSerializer(_bit_rate, when_used="json")]
"""Bits per second; written "800k" or "2M". Encoders cannot keep to less than 4k."""

Memory = Annotated[int, BeforeValidator(_bytes), PlainSerializer(_memory, when_used="json")]
"""Bytes; written "128MB" or "1.5GB"."""

Address = Annotated[str, AfterValidator(_address), PlainSerializer(redact, when_used="json")]
"""The address of a source, credentials included; redacted in the JSON form."""

FolderToBe = Annotated[Path, Field(strict=False), AfterValidator(_folder_to_be)]
"""A folder that exists or can be made."""
ReadableFile = Annotated[Path, Field(strict=False), AfterValidator(_readable_file)]
SecretKeyFile = Annotated[Path, Field(strict=False), AfterValidator(_secret_key_file)]
"""A CURVE key pair."""
KeysFolder = Annotated[Path, Field(strict=False), AfterValidator(_keys_folder)]
"""Public CURVE keys, one in each file NAME.key."""

SetVariable = Annotated[str, AfterValidator(_variable)]
"""The name of an environment variable that is set."""

Weights = Annotated[str, AfterValidator(_weights)]
"""The name of shipped weights, or a path: anything with a slash or a dot."""

FeedName = Annotated[
    str,
    matching(
        "[a-z0-9][a-z0-9_-]{0,63}",
        "1 to 64 of a-z, 0-9, _ and -, beginning with a letter or a digit",
    ),
]
HostPort = Annotated[
    str,
    matching(r"([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}", 'HOST:PORT such as "127.0.0.1:9560"'),
    AfterValidator(_listenable),
]
"""Where to listen; port 0 takes any free port."""
Endpoint = Annotated[
    str,
    matching(
        r"tcp://[^/\s]+:(\d{1,5}|\*)|ipc:///\S+",
        'an endpoint such as "tcp://127.0.0.1:5560" or "ipc:///run/nightbridge"',
    ),
    AfterValidator(_endpoint),
]
