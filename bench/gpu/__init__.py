"""Transfers between a GPU and the L1, for a machine with an NVIDIA GPU: `python -m bench.gpu`.

The worker's blocks are CUDA tensors of the stock client, so a server maps them over CUDA IPC. The
figures stand beside plain pinned copies of as many bytes in the same run.
"""
