"""What decoding and encoding need to know about FFmpeg, GPUs and bitstreams."""
