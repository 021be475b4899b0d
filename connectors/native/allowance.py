"""What one step of the engine spends on work of which the rest can be done in the next."""

from collections.abc import Callable, Iterator
from typing import Final

SECONDS: Final = 0.005


class Allowance:
    """SECONDS for one kind of work in each step; its last piece may take longer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._left = clock, SECONDS

    def renew(self) -> None:
        """The next step begins."""
        self._left = SECONDS

    def pieces(self) -> Iterator[None]:
        """Once for each piece of work that may be begun."""
        while self._left > 0:
            begun = self._clock()
            try:
                yield
            finally:
                self._left -= self._clock() - begun
