"""What run_gpu.sh does on a machine with a card: proofs, quarantine, rows, constants, counters, a profiled step."""
