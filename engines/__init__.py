"""The network, its training and its runtimes. Knows no stream; `engines.runtime.open_engine` is the door."""
