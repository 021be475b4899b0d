// Copies runs of bytes within device memory. The table holds `runs` destinations, then as many
// sources, then as many sizes in bytes. Runs do not overlap. A block takes every gridDim.x-th run.
//
// copy_runs.ptx is made of this file by scripts/make_ptx.py; the driver compiles it for its GPU.

typedef unsigned long long u64;

template <typename Word>
__device__ static void copy_words(u64 to, u64 from, u64 count) {
    Word *target = reinterpret_cast<Word *>(to);
    const Word *source = reinterpret_cast<const Word *>(from);
    u64 step = blockDim.x, i = threadIdx.x;
    // Four loads before the first store: few blocks run, so each must have much on its way.
    for (; i + 3 * step < count; i += 4 * step) {
        Word a = source[i], b = source[i + step];
        Word c = source[i + 2 * step], d = source[i + 3 * step];
        target[i] = a, target[i + step] = b;
        target[i + 2 * step] = c, target[i + 3 * step] = d;
    }
    for (; i < count; i += step) target[i] = source[i];
}

extern "C" __global__ void copy_runs(const u64 *table, unsigned int runs) {
    for (unsigned int run = blockIdx.x; run < runs; run += gridDim.x) {
        u64 to = table[run], from = table[runs + run], size = table[2 * (u64)runs + run];
        if ((to | from | size) % 16 == 0)
            copy_words<uint4>(to, from, size / 16);
        else if ((to | from | size) % 4 == 0)
            copy_words<unsigned int>(to, from, size / 4);
        else
            copy_words<unsigned char>(to, from, size);
    }
}
