"""Stores training pairs in a few files of bounded size, for a machine that gets data in small loads and has no codec.

`pack-1of3.tar` and so on hold picture files; `index.json` in the first says how they form samples. The network's input
is stored without loss; its targets are AVIF, some 40 dB from the original. Equal pictures are stored once. Needs only
Pillow.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from engines.data.lol import Picture, decode_picture
from engines.data.pairs import Sample

VOLUME_BYTES = 26_000_000
"""The largest file that `write_packs` makes."""

Options = dict[str, str | int | bool]

EXACT: Options = {"format": "webp", "lossless": True, "method": 2}
CLOSE: Options = {"format": "avif", "subsampling": "4:4:4", "speed": 8}
QUALITY = 90
"""AVIF quality of the bright pictures; the full-size dark ones have 10 less."""
KINDS = ("small", "large", "dark")


def write_packs(
    sets: Mapping[str, Sequence[Sample]],
    folder: Path,
    limit: int = VOLUME_BYTES,
    quality: int = QUALITY,
    exact: Sequence[str] = (),
) -> list[Path]:
    """Write named lists of samples; returns the files, each at most `limit` bytes, except that no picture is split.

    The small pictures, and the bright ones of the lists named in `exact`, are stored without loss.
    """
    stored: dict[str, bytes] = {}
    dark = CLOSE | {"quality": max(1, quality - 10)}
    index = {
        name: [
            _store(sample, stored, (EXACT, EXACT if name in exact else CLOSE | {"quality": quality}, dark))
            | {"mean": sample.mean}
            for sample in samples
        ]
        for name, samples in sets.items()
    }
    volumes: list[dict[str, bytes]] = [{"index.json": json.dumps(index).encode()}]
    for name, data in stored.items():
        if sum(map(_room, volumes[-1].values())) + _room(data) + tarfile.RECORDSIZE > limit:
            volumes.append({})
        volumes[-1][name] = data
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("pack-*of*.tar"):
        old.unlink()
    return [
        _write(folder / f"pack-{number}of{len(volumes)}.tar", files) for number, files in enumerate(volumes, start=1)
    ]


def _store(sample: Sample, stored: dict[str, bytes], how: Sequence[Options]) -> dict[str, object]:
    """The names of the files that hold the sample's pictures, each stored as `how` says."""
    names: dict[str, object] = {}
    for kind, options in zip(KINDS, how, strict=True):
        picture: Picture = getattr(sample, kind)
        digest = hashlib.sha256(f"{picture.shape}".encode() + picture.tobytes()).hexdigest()
        name = f"{digest[:20]}-{kind}.{options['format']}"
        same = name.replace("-dark", "-large")
        if same in stored:  # a day picture's target is also that of its detail branch
            name = same
        elif name not in stored:
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, **options)  # type: ignore[arg-type]
            stored[name] = buffer.getvalue()
        names[kind] = name
    return names


def _room(data: bytes) -> int:
    """Bytes that a file takes in a tar: a header block, and whole data blocks."""
    return tarfile.BLOCKSIZE * (1 + -(-len(data) // tarfile.BLOCKSIZE))


def _write(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read_packs(folder: Path) -> dict[str, list[Sample]]:
    """The lists of samples by name; raises `FileNotFoundError` if a file of the set is missing."""
    paths = sorted(folder.glob("pack-*of*.tar"))
    count = int(paths[0].stem.rpartition("of")[2]) if paths else 1
    missing = {f"pack-{number}of{count}.tar" for number in range(1, count + 1)} - {path.name for path in paths}
    if missing:
        raise FileNotFoundError(f"{folder}: {', '.join(sorted(missing))} missing")
    pictures: dict[str, Picture] = {}
    index: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                if member.name == "index.json":
                    index = json.loads(data)
                else:
                    pictures[member.name] = decode_picture(data, f"{path}/{member.name}")
    return {
        name: [Sample(**{kind: pictures[row[kind]] for kind in KINDS}, mean=row["mean"]) for row in rows]
        for name, rows in index.items()
    }
