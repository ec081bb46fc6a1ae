"""The network, its training and its runtimes. Knows no stream; `engines.runtime.open_engine` is the door."""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would tell Google of every start
