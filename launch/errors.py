"""What ends a command with one line for the operator."""


class UsageError(Exception):
    """Options that no stack can run with: exit code 2, before anything has started."""


class StackError(Exception):
    """Something on this machine is in the way: exit code 1."""
