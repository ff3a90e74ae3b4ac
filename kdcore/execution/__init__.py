"""How a network computes on a device: precision, memory layout, CUDA graphs."""
