"""Saves and loads networks as `weights.safetensors`, which carries the dimensions that build them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from engines.errors import EngineError, EngineMismatch
from engines.network.config import NetworkConfig
from engines.network.neid import Neid


def packed(network: Neid) -> bytes:
    """The bytes of `weights.safetensors`: the numbers that inference needs, without the detail branch's decoder."""
    numbers = {
        name: value.contiguous()
        for name, value in network.state_dict().items()
        if not name.startswith("reconstruction.")
    }
    return save(numbers, {"config": msgspec.json.encode(asdict(network.config)).decode()})


def save_network(network: Neid, path: Path) -> None:
    """Write the network atomically, as `packed`; raises `EngineError` if it cannot be written."""
    part = path.with_suffix(".part")
    try:
        part.write_bytes(packed(network))
        part.replace(path)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def load_network(path: Path) -> Neid:
    """Load a network, built from the dimensions in its file, ready for inference.

    Raises `EngineMismatch` if the file holds none.
    """
    try:
        with safe_open(path, "pt") as file:
            config = (file.metadata() or {}).get("config")
            if config is None:
                raise EngineMismatch(f"{path} does not say which network it is for (no `config` in its metadata)")
            network = Neid(msgspec.json.decode(config, type=NetworkConfig))
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, msgspec.MsgspecError, RuntimeError) as error:  # RuntimeError: tensors do not fit
        raise EngineMismatch(f"{path} holds no network: {' '.join(str(error).split())[:200]}") from error
    return network.eval()
