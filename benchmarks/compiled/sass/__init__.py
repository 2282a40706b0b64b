"""Runs the machine code of CUDA and Triton kernels on the CPU (sm_80, sm_90), and counts what it executes.

`machine.py` says how, what it finds and what it does not model; `launch.py` runs Triton's launches, `augmentation.py`
the CUDA augmentation. Below them: `listing`, `memory`, `state`, `operands`, then a module for each kind of instruction.
"""
