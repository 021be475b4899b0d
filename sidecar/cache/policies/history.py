"""What had to go lately, in 8 bytes an object."""

from array import array

from sidecar.cache.entry import Entry

_LEAST, _MOST = 1 << 10, 1 << 22


class History:
    """Remembers of evicted objects that they were here, and whether they were `hot`.

    A table of fingerprints: whatever comes to a cell that is taken takes it over, so the older a
    memory, the less likely it is there, and nothing has to be searched or tidied up. A stranger is
    taken for one of them once in 2**61 / cells times. `count` tells how many of either kind there
    are.
    """

    def __init__(self) -> None:
        self.count = {False: 0, True: 0}
        self._cells = array("Q")

    def make_room(self, objects: int) -> None:
        """Have a cell for each of so many. If it has to grow, it begins anew."""
        wanted = min(max(_LEAST, 1 << (objects - 1).bit_length()), _MOST)
        if wanted > len(self._cells):
            self._cells = array("Q", bytes(wanted * 8))
            self.count = {False: 0, True: 0}

    def add(self, entry: Entry, hot: bool) -> None:
        """`entry` goes."""
        name = _fingerprint(entry)
        self._put(name, name | 2 | hot)
        self.count[hot] += 1

    def take(self, entry: Entry) -> bool | None:
        """Whether it was hot when it went; forgets it. None if nothing is known of it."""
        if not self._cells:
            return None
        name = _fingerprint(entry)
        cell = self._cells[(name >> 2) % len(self._cells)]
        if cell | 1 != name | 3:
            return None
        self._put(name, 0)
        return bool(cell & 1)

    def _put(self, name: int, value: int) -> None:
        at = (name >> 2) % len(self._cells)
        if self._cells[at]:
            self.count[bool(self._cells[at] & 1)] -= 1
        self._cells[at] = value


def _fingerprint(entry: Entry) -> int:
    """62 bits above two zeros."""
    return (int.from_bytes(entry.hash[:8], "little") ^ hash(entry.space.key)) & ~3 & (1 << 64) - 1
