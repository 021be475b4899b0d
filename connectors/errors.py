"""The exceptions of this package."""


class ConnectorError(ValueError):
    """Options that no worker can run with. Its text is one line for the operator."""


class NotKnown(ConnectorError):
    """A model that says something that is not known here, or leaves something out."""
