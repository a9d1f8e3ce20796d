"""What a computation takes, counted without doing it: training plans and bounds of memory in sampling.

ledger.py       bytes that live, operations and messages, operation by operation
gpu_kernels.py  a GPU's arithmetic on the CPU's fake tensors
"""
