"""The end of xxh3_128, whose long part has been summed up on the GPU.

Source: xxHash's doc/xxhash_spec.md, XXH3 of large inputs with seed 0 and the default secret.
"""

from collections.abc import Sequence

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_PRIME64_1, _PRIME64_2 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F
_PRIME_MX1 = 0x165667919E3779F9
_LOW_KEY, _HIGH_KEY = 11, len(SECRET) - 64 - 11  # offsets into the secret
_MASK = 2**64 - 1


def digest(sums: Sequence[int], size: int) -> bytes:
    """The xxh3_128 of an object of `size` bytes, of its eight sums (uint64). 16 bytes.

    The sums are ints of Python, whose products do not overflow.
    """
    low = _merge(sums, _LOW_KEY, size * _PRIME64_1)
    high = _merge(sums, _HIGH_KEY, ~(size * _PRIME64_2))
    return (high << 64 | low).to_bytes(16, "big")


def _merge(sums: Sequence[int], key: int, start: int) -> int:
    keyed = [value ^ _word(key + 8 * lane) for lane, value in enumerate(sums)]
    products = [a * b for a, b in zip(keyed[::2], keyed[1::2], strict=True)]
    return _avalanche(start + sum(product & _MASK ^ product >> 64 for product in products) & _MASK)


def _word(offset: int) -> int:
    return int.from_bytes(SECRET[offset : offset + 8], "little")


def _avalanche(value: int) -> int:
    value = (value ^ value >> 37) * _PRIME_MX1 & _MASK
    return value ^ value >> 32
