"""The end of xxh3_128, whose long part has been summed up on the GPU (sum_objects.cu)."""

from collections.abc import Sequence

_WORD = (1 << 64) - 1
_PRIME_1, _PRIME_2, _AVALANCHE = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667919E3779F9
# Words of the default secret: from byte 11, and from byte 117 on.
_LOW = (
    0x6DD4DE1CAD21F72C, 0xA44072DB979083E9, 0xE679CB1F67B3B7A4, 0xD05A8278E5C0CC4E,
    0x4608B82172FFCC7D, 0x9035E08E2443F774, 0x52283C4C263A81E6, 0x65D088CB00C391BB,
)  # fmt: skip
_HIGH = (
    0xD9C97E9FC83159B4, 0x3483ACC5EA647378, 0xFAFFA081C5C3EBD3, 0xB751DD0D17EB6313,
    0x29265516D349DAF0, 0x7D58BE162B9E68D4, 0x7AD1B8F88FFCA147, 0x958F3ACB45CE31D0,
)  # fmt: skip


def digest(sums: Sequence[int], size: int) -> bytes:
    """The xxh3_128 of an object of `size` bytes, of its eight sums (uint64). 16 bytes."""
    low = _merge(sums, _LOW, size * _PRIME_1)
    high = _merge(sums, _HIGH, ~(size * _PRIME_2))
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


def _merge(sums: Sequence[int], secret: Sequence[int], start: int) -> int:
    keyed = [a ^ b for a, b in zip(sums, secret, strict=True)]
    products = [a * b for a, b in zip(keyed[::2], keyed[1::2], strict=True)]
    merged = (start + sum((p ^ p >> 64) & _WORD for p in products)) & _WORD
    merged = (merged ^ merged >> 37) * _AVALANCHE & _WORD
    return merged ^ merged >> 32
