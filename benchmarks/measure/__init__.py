"""How the benchmarks measure: contenders in turns, GPU events, the machine, and the photographs that they run on."""
