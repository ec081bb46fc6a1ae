"""The network, its training and its runtimes. Imports nothing of `stream`. Start at `engines.runtime.open_engine`."""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report every start to Google
