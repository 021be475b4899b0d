"""The typed configuration of the server and where its values come from."""

from sidecar.config.loading import Loaded, load
from sidecar.config.options import Config
from sidecar.config.values import ConfigError

__all__ = ["Config", "ConfigError", "Loaded", "load"]
