"""Workers on NVIDIA GPUs: their KV memory is mapped over CUDA IPC, in a child process per GPU.

The server itself never calls CUDA. `gpus` starts the children and talks to them; `child` is what
runs in one, over the driver interface of `driver`.
"""
