"""A step of a request, as a trace shows it; recorded only for requests in the sample."""

from typing import Final

Attribute = str | int | float | bool


class Span:
    """A step that nobody records: traces are off, or its request is not in the sample.

    Attributes bear the names of metric labels where there is one. Loop thread only.
    """

    __slots__ = ()

    def child(self, name: str, **attributes: Attribute) -> "Span":
        """Begin a part of this step; it may end later than the step."""
        return self

    def set(self, **attributes: Attribute) -> None:
        """Say more of the step. Nothing once it has ended."""

    def end(self, error: str = "") -> None:
        """The step is over, failed if there is an `error`. Once more is nothing."""


NO_SPAN: Final = Span()
