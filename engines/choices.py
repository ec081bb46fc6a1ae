"""What runtimes and number formats can be asked for, by the names that settings and commands use."""

from __future__ import annotations

from typing import Literal

Runtime = Literal["auto", "tensorrt", "torch", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
