"""What the backward in two phases compiles to: its second phase reads what other warps wrote in its first.

The source puts a barrier between delta's store and its load, but a compiler that loads ahead could pass it. The order
of store, barrier and load is proven for the installed Triton, by its code, and for no other.
"""

import pytest
import triton

from benchmarks.compiled.cases.attention import config_case
from benchmarks.compiled.resources import compile_case, compile_resources
from deit_kernels.short_attention.configuration import choose

pinned = pytest.mark.skipif(not triton.__version__.startswith("3.8."), reason="the names of Triton 3.8's own code")


@pinned
def test_the_deltas_are_stored_before_a_barrier_of_all_memory_and_loaded_behind_it() -> None:
    config = choose("backward", 80, 198, 64, 1 << 20, 1)
    code = compile_case(config_case("backward", 198, 64, config, 80), 80).asm["ttgir"].splitlines()

    def lines(*words: str) -> list[int]:
        return [number for number, line in enumerate(code) if all(word in line for word in words)]

    stored, loaded = lines("tt.store", "x!tt.ptr<f32>"), lines("async_copy_global_to_local %row_delta", "x!tt.ptr<f32>")
    (barrier,) = lines("ttg.barrier all")
    assert len(stored) == 1 and loaded
    assert stored[0] < barrier < min(loaded)


def test_two_programs_share_a_multiprocessor_of_a_card_of_99_kilobytes() -> None:
    for capability, card in ((80, 80), (89, 89), (120, 89)):
        config = choose("backward", card, 198, 64, 1 << 20, 1)
        numbers = compile_resources(config_case("backward", 198, 64, config, capability), capability)
        assert config.form == "two_phase"
        assert numbers["warps"] == 2 * config.num_warps and numbers["shared_bytes"] <= 50 * 1024
        assert numbers["loads_128"] > 0 and numbers["stores_128"] > 0
