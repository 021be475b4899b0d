"""vLLM's own offloading connector with the sidecar behind it.

Runs inside vLLM's processes, with what vLLM brings: pyzmq, msgspec, numpy, torch. `spec` is what
vLLM loads by name; `manager` plans in the scheduler's process, `membership` and the two workers
map the sidecar's arena and copy in each worker's.
"""
