"""Runs the machine code of a CUDA kernel (sm_90) on the CPU, and counts what it executes."""
