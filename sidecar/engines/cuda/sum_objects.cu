// Makes the eight accumulators of xxh3 (seed 0, default secret) over objects in device memory; the
// CPU makes the digest of them (digest.py). The table holds `objects` addresses, then as many sizes
// in bytes, then eight words an object for the sums. Addresses and sizes are multiples of 8, sizes
// more than 240. Source: xxHash's doc/xxhash_spec.md, XXH3 of large inputs.
//
// Eight threads take an object, one for each accumulator, and none waits for another. More could
// share a KiB at the most: then an accumulator is scrambled, and all that follows depends on it.
// They suffice because the way to memory is slow and not the sums, and they seldom wait for it: AHEAD
// KiB of an object are on their way to the L2 cache while a block is summed up, all loads of a block
// are begun before the first is used, and the objects of a transfer are summed up beside each other.
// The other word of a pair, which the neighbour's thread loads too, comes with the same cache line.
//
// sum_objects.ptx is made of this file by scripts/make_ptx.py; the driver compiles it for its GPU.

typedef unsigned long long u64;

static const unsigned LANES = 8;     // accumulators, and words of a stripe
static const unsigned STRIPES = 16;  // of a block
static const unsigned STRIPE = 64, BLOCK = STRIPES * STRIPE, LINE = BLOCK / LANES;  // bytes
static const unsigned AHEAD = 8;     // blocks

__constant__ static const u64 START[LANES] = {
    0x00000000c2b2ae3d, 0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9,
    0x85ebca77c2b2ae63, 0x0000000085ebca77, 0x27d4eb2f165667c5, 0x000000009e3779b1,
};
__constant__ static const u64 SECRET[STRIPES + LANES] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072,
    0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0,
    0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8,
    0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
    0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af,
};
// The secret's bytes from 121 on: the key of the last stripe.
__constant__ static const u64 LAST[LANES] = {
    0xea647378d9c97e9f, 0xc5c3ebd33483acc5, 0x17eb6313faffa081, 0xd349daf0b751dd0d,
    0x2b9e68d429265516, 0x8ffca1477d58be16, 0x45ce31d07ad1b8f8, 0xaf280416958f3acb,
};
static const unsigned SCRAMBLE = 0x9e3779b1;

__device__ static u64 word(u64 address) { return *reinterpret_cast<const u64 *>(address); }

// What a stripe adds to the accumulator of its word `value`.
__device__ static u64 added(u64 value, u64 neighbour, u64 key) {
    u64 keyed = value ^ key;
    return neighbour + (u64)(unsigned)keyed * (keyed >> 32);
}

// One of the eight accumulators of the object at `base`.
__device__ static u64 sum_lane(u64 base, u64 size, unsigned lane) {
    u64 keys[STRIPES], sum = START[lane];
#pragma unroll
    for (unsigned s = 0; s < STRIPES; s++) keys[s] = SECRET[s + lane];
    u64 own = base + 8 * lane, other = base + 8 * (lane ^ 1), at = 0, last = size - STRIPE;
    for (; at + BLOCK < size; at += BLOCK) {
        if (at + (AHEAD + 1) * BLOCK < size)
            asm("prefetch.global.L2 [%0];" ::"l"(base + at + AHEAD * BLOCK + LINE * lane));
        u64 values[STRIPES], others[STRIPES];
#pragma unroll
        for (unsigned s = 0; s < STRIPES; s++) {
            values[s] = word(own + at + s * STRIPE);
            others[s] = word(other + at + s * STRIPE);
        }
#pragma unroll
        for (unsigned s = 0; s < STRIPES; s++) sum += added(values[s], others[s], keys[s]);
        sum = (sum ^ sum >> 47 ^ SECRET[STRIPES + lane]) * SCRAMBLE;
    }
#pragma unroll
    for (unsigned s = 0; s < STRIPES; s++, at += STRIPE)
        if (at + STRIPE < size) sum += added(word(own + at), word(other + at), keys[s]);
    return sum + added(word(own + last), word(other + last), LAST[lane]);
}

// One block a multiprocessor is enough: there are registers for all loads of a KiB.
extern "C" __global__ void __launch_bounds__(32, 1) sum_objects(u64 *table, unsigned objects) {
    unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned object = thread / LANES, lane = thread % LANES;
    if (object >= objects) return;
    u64 address = table[object], size = table[objects + object];
    table[2 * (u64)objects + thread] = sum_lane(address, size, lane);
}
