"""GPUs move objects between their memory and files themselves, past the L1 (GPUDirect Storage).

One package above all that it joins; whoever serves no such worker imports nothing of it. What it
is for the rest: a `Bypass` (tiers/bypass.py) for L2, a `PastL1` (handlers/core.py) for the
handlers, and memory of workers (engines/cuda/gpus.py).
"""

from sidecar.gds.gds import Gds

__all__ = ["Gds"]
