// One definition of the arithmetic for both sides: plain inline functions for the CPU, __host__ __device__ for nvcc.
// DEVICE is for kernel bodies, which the tests build with g++ as well; DEVICE_CALL for what is not to be inlined.
//
// Everything in this folder compiles with contraction off (g++ -ffp-contract=off, nvcc -fmad=false): a fused
// multiply-add rounds once where Pillow and NumPy round twice.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ inline
#define DEVICE __device__ inline
#define DEVICE_CALL static __device__ __noinline__
#else
#define HOST_DEVICE inline
#define DEVICE inline
#define DEVICE_CALL inline
#endif
