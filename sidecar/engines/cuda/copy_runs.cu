// Copies runs of bytes within device memory. The table holds `runs` destinations, then as many
// sources, then as many sizes in bytes. Runs do not overlap. Each warp takes a run at a time: runs
// are short, a whole block would be idle for the most part.
//
// copy_runs.ptx is made of this file by scripts/make_ptx.py; the driver compiles it for its GPU.

typedef unsigned long long u64;

static const unsigned WARP = 32;

template <typename Word>
__device__ static void copy_words(u64 to, u64 from, u64 count) {
    Word *target = reinterpret_cast<Word *>(to);
    const Word *source = reinterpret_cast<const Word *>(from);
    u64 i = threadIdx.x % WARP;
    // Four loads before the first store: few warps run, so each must have much on its way.
    for (; i + 3 * WARP < count; i += 4 * WARP) {
        Word a = source[i], b = source[i + WARP];
        Word c = source[i + 2 * WARP], d = source[i + 3 * WARP];
        target[i] = a, target[i + WARP] = b;
        target[i + 2 * WARP] = c, target[i + 3 * WARP] = d;
    }
    for (; i < count; i += WARP) target[i] = source[i];
}

extern "C" __global__ void __launch_bounds__(1024) copy_runs(const u64 *table, unsigned runs) {
    unsigned warps = gridDim.x * blockDim.x / WARP;
    unsigned first = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    for (unsigned run = first; run < runs; run += warps) {
        u64 to = table[run], from = table[runs + run], size = table[2 * (u64)runs + run];
        if ((to | from | size) % 16 == 0)
            copy_words<uint4>(to, from, size / 16);
        else if ((to | from | size) % 4 == 0)
            copy_words<unsigned>(to, from, size / 4);
        else
            copy_words<unsigned char>(to, from, size);
    }
}
