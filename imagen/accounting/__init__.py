"""Count the memory, FLOPs and traffic of a computation on fake tensors, for training plans and memory bounds.

tracker.py      live bytes, FLOPs and collectives, operation by operation
gpu_kernels.py  the memory use of GPU kernels, for fake tensors on the CPU
"""
