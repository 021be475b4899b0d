"""What makes an engine's workers use the sidecar: configuration, arguments, environment.

Pure functions on frozen options; needs nothing but Python, so that a worker image can import it.
`native` is apart: it runs within vLLM, as the backend of its own connector.
"""

# Of both distributions: kv-sidecar, and kv-sidecar-connectors, which is this package alone.
__version__ = "0.1.0"
