"""What the runtimes on an NVIDIA GPU are made of: page-locked slots, streams, CUDA graphs, and TensorRT's plans."""
