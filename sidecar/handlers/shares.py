"""How much of the L1 one of those who write may have."""


def write_share(capacity: int, held: int, own: int) -> int:
    """How many bytes more may be reserved by one that has `own`, where all have `held` together.

    With these it has as much as nobody has: one alone half of the L1, n of them 1 / (n + 1)
    each. (This is how switches share a buffer, by "dynamic thresholds".)
    """
    return max(0, capacity - held - own) // 2
