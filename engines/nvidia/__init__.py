"""The parts of the runtimes on an NVIDIA GPU: page-locked slots, streams, CUDA graphs, and TensorRT's plans."""
