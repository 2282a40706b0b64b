// Ten kernels that each show one constant of the machine. constants.py compiles them with NVRTC, runs them and has the
// arithmetic; a test reads their machine code. Every loop holds UNROLL of the instructions that it times, in asm volatile
// so that none is folded away; clocks[block] is what thread 0 counted around all ROUNDS of them.

#define UNROLL 16
#define TIMED_BEGIN(rounds)          \
    __syncthreads();                 \
    const long long began = clock64(); \
    _Pragma("unroll 1") for (int round = 0; round < (rounds); ++round) {
#define TIMED_END \
    }             \
    __syncthreads(); \
    if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - began;

extern "C" __global__ void launch() {}

// Each address holds the next one's, so a load waits for the one before it. The ring has as many as are timed.
extern "C" __global__ void l2_latency(long long *clocks, unsigned long long *ring, unsigned long long *out, int rounds) {
    unsigned long long at = (unsigned long long)ring;
    for (int i = 0; i < rounds * UNROLL; ++i) asm volatile("ld.global.cg.u64 %0, [%0];" : "+l"(at));  // into L2
    TIMED_BEGIN(rounds)
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) asm volatile("ld.global.cg.u64 %0, [%0];" : "+l"(at)::"memory");
    TIMED_END
    *out = at;
}

extern "C" __global__ void shared_latency(long long *clocks, unsigned *out, int rounds) {
    __shared__ unsigned ring[32];
    unsigned at = (unsigned)__cvta_generic_to_shared(ring);
    ring[threadIdx.x] = at;
    TIMED_BEGIN(rounds)
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) asm volatile("ld.shared.u32 %0, [%0];" : "+r"(at)::"memory");
    TIMED_END
    out[threadIdx.x] = at;
}

// ptxas makes one of loads of the same address, volatile or not, and takes it out of the loop: addresses alternate.
extern "C" __global__ void __launch_bounds__(1024) shared_bandwidth(long long *clocks, unsigned *out, int rounds) {
    __shared__ uint4 data[1024 + UNROLL];
    data[threadIdx.x] = make_uint4(threadIdx.x, 0, 0, 0);
    unsigned at = (unsigned)__cvta_generic_to_shared(data + threadIdx.x), sum = 0;
    TIMED_BEGIN(rounds)
    at ^= 16;
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        uint4 v;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at + 16 * i) : "memory");
        sum ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    TIMED_END
    out[threadIdx.x] = sum;
}

extern "C" __global__ void barrier(long long *clocks, int rounds) {
    TIMED_BEGIN(rounds)
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) asm volatile("bar.sync 0;" ::: "memory");
    TIMED_END
}

extern "C" __global__ void __launch_bounds__(1024) ex2(long long *clocks, float *out, int rounds) {
    float v[4] = {0.1f, 0.2f, 0.3f, float(threadIdx.x)};
    TIMED_BEGIN(rounds)
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(v[i % 4]));
    TIMED_END
    out[threadIdx.x] = v[0] + v[1] + v[2] + v[3];
}

extern "C" __global__ void __launch_bounds__(1024) ffma(long long *clocks, float *out, int rounds) {
    float v[4] = {0.1f, 0.2f, 0.3f, float(threadIdx.x)};
    const float factor = out[0];
    TIMED_BEGIN(rounds)
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) asm volatile("fma.rn.f32 %0, %0, %1, %1;" : "+f"(v[i % 4]) : "f"(factor));
    TIMED_END
    out[threadIdx.x] = v[0] + v[1] + v[2] + v[3];
}

// All threads of the grid read `count` vectors, `rounds` times, past L1. Few enough of them lie in L2.
extern "C" __global__ void __launch_bounds__(1024) stream(long long *clocks, const uint4 *data, unsigned *out, int count, int rounds) {
    const int first = blockIdx.x * blockDim.x + threadIdx.x, stride = gridDim.x * blockDim.x;
    unsigned sum = 0;
    TIMED_BEGIN(rounds)
    for (int at = first; at < count; at += UNROLL * stride) {
        uint4 v[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            const uint4 *from = data + min(at + i * stride, count - 1);
            asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v[i].x), "=r"(v[i].y), "=r"(v[i].z), "=r"(v[i].w) : "l"(from));
        }
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    TIMED_END
    if (sum == 1) *out = sum;
}

// Products of 16-bit operands by one warp, 16 × 8 × 16, four sums each, eight warps a multiprocessor.
extern "C" __global__ void hmma(long long *clocks, float *out, int rounds) {
    float d[4][4] = {};
    const unsigned a = threadIdx.x * 0x3f80, b = 0x3f803f80;
    TIMED_BEGIN(rounds)
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        float *s = d[i % 4];
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%5, %5}, {%0, %1, %2, %3};"
                     : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]) : "r"(a), "r"(b));
    }
    TIMED_END
    for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i][0] + d[i][1] + d[i][2] + d[i][3];
}

#ifdef COLUMNS
// Products of 64 × COLUMNS × 16 by a warp group, both operands in shared memory. constants.py writes SUMS, the list of
// its COLUMNS / 2 sums as asm takes them, and A_OPERAND, B_OPERAND, the numbers of the two descriptors behind them.
extern "C" __global__ void __launch_bounds__(128) hgmma(long long *clocks, float *out, int rounds) {
    __shared__ __align__(1024) unsigned operands[(64 + COLUMNS) * 8];
    for (int i = threadIdx.x; i < (64 + COLUMNS) * 8; i += 128) operands[i] = 0x3c003c00;
    asm volatile("fence.proxy.async;" ::: "memory");
    // No swizzle: cores of 8 rows × 16 bytes, 128 bytes from one to the next along K, 256 along rows.
    const unsigned long long layout = (8ull << 16) | (16ull << 32);
    const unsigned at = (unsigned)__cvta_generic_to_shared(operands);
    const unsigned long long a = layout | (at >> 4), b = layout | ((at + 64 * 32) >> 4);
    float d[COLUMNS / 2];
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) d[i] = 0;
    TIMED_BEGIN(rounds)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int i = 0; i < UNROLL; ++i)
        asm volatile("wgmma.mma_async.sync.aligned.m64n" NAME "k16.f32.bf16.bf16 {" SUMS "}, " A_OPERAND ", " B_OPERAND ", 1, 1, 1, 0, 0;"
                     : BOUND : "l"(a), "l"(b));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    TIMED_END
    float sum = 0;
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) sum += d[i];
    out[threadIdx.x] = sum;
}
#endif
