"""Measures `lmcache server` and `kv-sidecar serve` side by side (`python -m bench`)."""

import os

# Read by the stock client when it is first imported, here and in the client processes.
os.environ.setdefault("LMCACHE_DISABLE_BANNER", "1")
os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
