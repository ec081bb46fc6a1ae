"""Weights that only double: every pixel becomes a square of four equal pixels, whatever the network's depth."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from engines.cards import NUMBERS, Card, Weights, write_card
from engines.checkpoint import save_network
from engines.export import export_onnx
from engines.network.config import NetworkConfig
from engines.network.neid import SCALE, Neid

SMALL = NetworkConfig(name="neid-live", widths=(16, 16, 16), unshuffle=2, reduction=4)


def identity_network(config: NetworkConfig = SMALL) -> Neid:
    """A network whose first level, last skip and sub-pixels copy, and whose other numbers are nought."""
    network = Neid(config)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    folded, fold, unfold = 3 * config.unshuffle**2, config.unshuffle, SCALE * config.unshuffle
    first, last = network.encoder.levels[0], network.light.levels[-1]
    with torch.no_grad():
        for channel in range(folded):
            first[0].weight[channel, channel, 1, 1] = 1
            first[2].weight[channel, channel, 1, 1] = 1
            last[0].weight[channel, config.widths[0] + channel, 1, 1] = 1
            last[2].weight[channel, channel, 1, 1] = 1
        for colour in range(3):
            for row in range(unfold):
                for column in range(unfold):
                    out = colour * unfold**2 + row * unfold + column
                    source = colour * fold**2 + row // SCALE * fold + column // SCALE
                    network.light.subpixels.weight[out, source, 1, 1] = 1
    return network.eval()


def store(network: Neid, folder: Path, name: str) -> Weights:
    """A weights folder with the numbers and the fp32 file."""
    folder.mkdir(parents=True)
    save_network(network, folder / NUMBERS)
    export_onnx(network, folder / "fp32.onnx")
    write_card(folder, Card(name=name, network=network.config.name, files={}))
    return Weights(folder)
