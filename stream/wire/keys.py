"""CURVE key pairs, as files that relays and viewers read."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import zmq.auth

SECRET, PUBLIC = "key_secret", "key"
"""Suffixes of the files."""

KEY = re.compile(rb"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")
"""A key as files hold it: 32 bytes in Z85."""


def make_keys(name: str, folder: Path) -> tuple[Path, Path]:
    """Create a pair in the files `NAME.key`, which is public, and `NAME.key_secret`, which only its owner may read.

    The secret file holds both keys. Raises `FileExistsError` rather than replace a key, and `OSError`; neither leaves a
    new file behind.
    """
    public, secret = folder / f"{name}.{PUBLIC}", folder / f"{name}.{SECRET}"
    if public.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(public))
    with TemporaryDirectory() as closed:
        zmq.auth.create_certificates(closed, name)
        made: list[Path] = []
        for path, mode in ((secret, 0o600), (public, 0o644)):
            try:
                path.touch(mode, exist_ok=False)
                made.append(path)
                path.write_bytes((Path(closed) / path.name).read_bytes())
            except OSError as error:
                for each in made:
                    each.unlink()
                raise OSError(error.errno, error.strerror, str(path)) from None
    return public, secret


def read_keys(path: Path) -> tuple[bytes, bytes | None]:
    """The public key in a file, and the secret one if it holds one. Raises `OSError` and `ValueError`."""
    try:
        public, secret = zmq.auth.load_certificate(path)
    except IndexError:  # a line with a key's name and no value
        raise ValueError(f"{path} names a key without its value") from None
    for key in (public, secret):
        if key is not None and not KEY.fullmatch(key):
            raise ValueError(f"{path} holds an invalid key; it must be 40 characters of Z85")
    return public, secret


def key_files(folder: Path) -> Iterator[Path]:
    """The files of a folder that hold public keys, except hidden ones. Raises `OSError`, also for a missing folder,
    which `glob` would not report."""
    return (path for path in folder.iterdir() if path.match(f"[!.]*.{PUBLIC}"))


def check_public_keys(folder: Path) -> None:
    """Raise `OSError` or `ValueError` if a public key in a folder cannot be read."""
    for path in key_files(folder):
        read_keys(path)
