"""Readers of packets from an address, a file or a folder; `stream.source` chooses among them."""
