"""kv-sidecar: a KV-cache server for LLM engines that speaks the LMCache MP protocol."""

__version__ = "0.1.0"
