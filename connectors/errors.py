"""The one exception of this package."""


class ConnectorError(ValueError):
    """Options that no worker can run with. Its text is one line for the operator."""
