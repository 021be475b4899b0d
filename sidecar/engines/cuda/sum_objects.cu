// The long part of xxh3_128 (seed 0, default secret; the algorithm is xxHash's, BSD licence): eight
// accumulators over each object in device memory. `digest.py` makes the digest of them.
//
// `table` holds `objects` addresses, then as many sizes in bytes, then room for eight words each.
// Addresses and sizes are multiples of 8, sizes more than 240.
//
// A thread has one accumulator of one object, and needs no other: what its neighbour reads it reads
// too, from the L1 cache. A quarter of a warp an object is little, but a block's 32 loads do not
// wait for each other, and a disk brings a few GB/s: the multiprocessors belong to inference.
//
// sum_objects.ptx is made of this file by scripts/make_ptx.py.

typedef unsigned long long u64;

static const unsigned LANES = 8, STRIPES = 16;
static const u64 STRIPE = 64, BLOCK = STRIPES * STRIPE, PRIME32_1 = 0x9E3779B1;

// The default secret, and its last eight words as the last stripe sees them, from byte 121.
__device__ static const u64 SECRET[24] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de,
    0x1f67b3b7a4a44072, 0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82,
    0x8e2443f7744608b8, 0x4c263a81e69035e0, 0xcb00c391bb52283c,
    0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a,
    0x647378d9c97e9fc8, 0xc3ebd33483acc5ea, 0xeb6313faffa081c5,
    0x49daf0b751dd0d17, 0x9e68d429265516d3, 0xfca1477d58be162b,
    0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af};
__device__ static const u64 LAST[8] = {
    0xea647378d9c97e9f, 0xc5c3ebd33483acc5, 0x17eb6313faffa081,
    0xd349daf0b751dd0d, 0x2b9e68d429265516, 0x8ffca1477d58be16,
    0x45ce31d07ad1b8f8, 0xaf280416958f3acb};
__device__ static const u64 START[8] = {
    0xC2B2AE3D, 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
    0x85EBCA77C2B2AE63, 0x85EBCA77, 0x27D4EB2F165667C5, 0x9E3779B1};

__device__ static u64 mixed(u64 value, u64 neighbour, u64 key) {
    u64 keyed = value ^ key;
    return neighbour + (keyed & 0xFFFFFFFF) * (keyed >> 32);
}

extern "C" __global__ void __launch_bounds__(32) sum_objects(u64 *table, unsigned objects) {
    unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned object = thread / LANES, lane = thread % LANES;
    if (object >= objects) return;
    const u64 *data = reinterpret_cast<const u64 *>(table[object]);
    u64 size = table[objects + object], sum = START[lane];
    u64 blocks = (size - 1) / BLOCK, keys[STRIPES];
#pragma unroll
    for (unsigned i = 0; i < STRIPES; i++) keys[i] = SECRET[i + lane];
    for (u64 block = 0; block < blocks; block++, data += BLOCK / 8) {
        u64 values[STRIPES], neighbours[STRIPES];
#pragma unroll
        for (unsigned i = 0; i < STRIPES; i++) {
            values[i] = data[i * LANES + lane];
            neighbours[i] = data[i * LANES + (lane ^ 1)];
        }
#pragma unroll
        for (unsigned i = 0; i < STRIPES; i++)
            sum += mixed(values[i], neighbours[i], keys[i]);
        sum = (sum ^ (sum >> 47) ^ SECRET[16 + lane]) * PRIME32_1;
    }
    unsigned stripes = (unsigned)((size - 1 - blocks * BLOCK) / STRIPE);
    for (unsigned i = 0; i < stripes; i++)
        sum += mixed(data[i * LANES + lane], data[i * LANES + (lane ^ 1)], SECRET[i + lane]);
    data = reinterpret_cast<const u64 *>(table[object] + size - STRIPE);
    sum += mixed(data[lane], data[lane ^ 1], LAST[lane]);
    table[2 * (u64)objects + object * LANES + lane] = sum;
}
