"""A real vLLM on the CPU, its worker restarted, its prompt served from the sidecar."""
