"""kv-sidecar: a KV-cache server for LLM engines that speaks the LMCache MP protocol."""

from connectors import __version__ as __version__
