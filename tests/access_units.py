"""Access units of H.264, of clips and made by hand, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stream.codecs.h264 import nal_units
from stream.settings import FeedSettings
from stream.source import open_source
from tests.clips import make_clip


def units_of(path: Path) -> list[bytes]:
    """The access units of a clip, Annex B, in the order of decoding."""
    with open_source(FeedSettings(url=str(path))) as source:
        return [bytes(packet.packet) for packet in next(source.segments()).packets() if packet.kind == "video"]


def clip(folder: Path, encoding: dict[str, Any]) -> list[bytes]:
    return units_of(make_clip(folder / "clip.ts", **{"pictures": 60, "key_interval": 20} | encoding))


def is_referred(unit: bytes) -> bool:
    return any(referred for kind, referred, _ in nal_units(unit) if kind in (1, 5))


def coded(*numbers: int) -> str:
    """The bits of numbers as Exp-Golomb codes."""
    binary = [f"{number + 1:b}" for number in numbers]
    return "".join("0" * (len(bits) - 1) + bits for bits in binary)


def nal(head: int, bits: str) -> bytes:
    """A NAL unit with these bits, and the one that ends them."""
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    return b"\x00\x00\x01" + bytes([head]) + int(bits, 2).to_bytes(len(bits) // 8, "big")
