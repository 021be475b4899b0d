"""Imported first by what vLLM loads by name: other versions of vLLM lack what the rest imports.

Raises ConnectorError with a vLLM that is not served.
"""

import vllm

from connectors.versions import check

check({"vLLM's own offloading connector"}, {"vllm": vllm.__version__})
