"""From a trained network to the files that runtimes open: ONNX in fp32 and fp16, and int8 for OpenVINO."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engines.cards import NUMBERS, Weights, write_card
from engines.checkpoint import load_network
from engines.colour import Colour, to_planes
from engines.lol import Picture, read_picture
from engines.network.neid import Neid
from engines.picture import PictureGraph

INPUTS = ("y", "uv", "colour")
OUTPUTS = ("y_out", "uv_out")
OPSET = 18
CHATTY = ("torch.onnx", "onnxscript", "onnx_ir", "nncf")
"""Loggers whose notes on every node of the graph are for those who make the exporters."""
KEPT_IN_FLOAT = ("Add", "Multiply", "Subtract", "MatMul", "ReduceMean", "Sigmoid")
"""Operations of the colour conversion and of feature fusing, which int8 would ruin and which cost nothing."""


def export_onnx(network: Neid, path: Path, *, half: bool = False) -> None:
    """Write the picture graph for any size and batch; `half` computes the network in float16.

    Inputs, outputs and the colour arithmetic are the same in both. The file tells nothing of where it was made.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    graph = PictureGraph(HalfNetwork(network) if half else network).eval()
    multiple = network.config.multiple
    example = (
        torch.zeros(2, 1, 3 * multiple + 2, 2 * multiple + 2, dtype=torch.uint8),
        torch.zeros(2, 2, 3 * multiple // 2 + 1, multiple + 1, dtype=torch.uint8),
        torch.zeros(2, 2, 3, 4),
    )
    free = torch.export.Dim.DYNAMIC
    shapes = {"y": {0: free, 2: free, 3: free}, "uv": {0: free, 2: free, 3: free}, "colour": {0: free}}
    with quiet():
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=shapes,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # every node holds the paths of the code that it came from
    program.save(path, external_data=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Of what the exporters tell, errors only."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class HalfNetwork(nn.Module):
    """A network computed in float16 between float32 ends."""

    def __init__(self, network: Neid) -> None:
        super().__init__()
        self.config = network.config
        self.network = Neid(network.config)
        self.network.load_state_dict(
            {name: value for name, value in network.state_dict().items() if not name.startswith("reconstruction.")}
        )
        self.network.half()

    def subpixels(self, folded: torch.Tensor) -> torch.Tensor:
        """As `Neid.subpixels`."""
        return self.network.subpixels(folded.half()).float()


def export_int8(onnx_file: Path, xml_file: Path, pictures: Sequence[Picture]) -> None:
    """Quantise the exported graph with NNCF, calibrated on `pictures` as they come from cameras.

    `pictures` must hold the darkest and the brightest that will come: ranges are taken from their extremes, since
    their averages would clip daylight.

    The first and the last convolution stay as they are too: dark input has few levels to lose, and the last
    layer's rounding would be seen.
    """
    import nncf
    import openvino
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    model = openvino.Core().read_model(onnx_file)
    convolutions = [node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]
    colour = Colour().coefficients()[None]

    def inputs(picture: Picture) -> dict[str, np.ndarray]:
        y, uv = to_planes(picture, Colour())
        return {"y": y[None, None], "uv": uv[None], "colour": colour}

    with quiet():
        quantised = nncf.quantize(
            model,
            nncf.Dataset(list(pictures), inputs),
            subset_size=len(pictures),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(
                names=[convolutions[0].get_friendly_name(), convolutions[-1].get_friendly_name()],
                types=list(KEPT_IN_FLOAT),
            ),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )
    openvino.save_model(quantised, xml_file, compress_to_fp16=False)


def export_all(weights: Weights, calibration: Sequence[Path]) -> None:
    """Write every file that is made from the numbers beside them, and the digests into the card.

    `calibration` are picture files as cameras send them; without any no int8 is made, and an old one is removed,
    since it would belong to other numbers.
    """
    pictures = [read_picture(path) for path in calibration]
    folder = weights.folder
    network = load_network(weights.file(NUMBERS))
    export_onnx(network, folder / "fp32.onnx")
    export_onnx(network, folder / "fp16.onnx", half=True)
    for name in ("int8.xml", "int8.bin"):
        (folder / name).unlink(missing_ok=True)
    if pictures:
        export_int8(folder / "fp32.onnx", folder / "int8.xml", pictures)
    write_card(folder, weights.card)
