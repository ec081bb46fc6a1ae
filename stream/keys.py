"""CURVE key pairs, as files that relays and viewers read."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import zmq.auth

SECRET, PUBLIC = "key_secret", "key"
"""How the names of the files end."""


def make_keys(name: str, folder: Path) -> tuple[Path, Path]:
    """A new pair, in the files `NAME.key`, which is public, and `NAME.key_secret`, which only its owner may read.

    The secret file holds both keys. Raises `FileExistsError` rather than replace a key, and `OSError`.
    """
    public, secret = folder / f"{name}.{PUBLIC}", folder / f"{name}.{SECRET}"
    if public.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(public))
    with TemporaryDirectory() as closed:
        zmq.auth.create_certificates(closed, name)
        for path, mode in ((secret, 0o600), (public, 0o644)):
            path.touch(mode, exist_ok=False)
            path.write_bytes((Path(closed) / path.name).read_bytes())
    return public, secret
