"""What decoding and encoding need of FFmpeg, of a GPU and of a stream's own bytes."""
