"""The names of runtimes and precisions that settings and commands take."""

from __future__ import annotations

from typing import Literal

Runtime = Literal["auto", "tensorrt", "torch", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
