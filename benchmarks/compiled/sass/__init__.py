"""Runs the machine code of CUDA and Triton kernels on the CPU (sm_80, sm_90).

`machine.py` says how, what it finds and what it does not model; `launch.py` runs Triton's launches. Below them:
`listing`, `memory`, `state`, `operands`, then a module for each kind of instruction.
"""
