"""Machine code that is run on the CPU stores what its source says, and the bytes of the CPU ops."""

import dataclasses
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from setuptools.errors import CompileError

from benchmarks.compiled.sass import integers, rounding
from benchmarks.compiled.sass.listing import Listing
from benchmarks.compiled.sass.machine import Machine
from benchmarks.compiled.sass.memory import Memory
from deit_kernels.augment import Policy
from tests.benchmarks.compiled import augmentation_code as recipe

THREADS = 64
BY_HAND = """
extern "C" __global__ void by_hand(const int* trips, const int* given, int* out, int stride) {
  extern __shared__ int shared[];
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  int total = given[number];
#pragma unroll 1
  for (int i = 0; i < trips[blockIdx.x]; ++i) total = total * 3 + i;
  shared[threadIdx.x * stride] = total;
  __syncthreads();
  if (threadIdx.x % 2)
    out[number] = shared[(threadIdx.x - 1) * stride] / 7;
  else
    atomicAdd(shared + blockDim.x * stride + threadIdx.x / 2 % 4, total);
  __syncthreads();
  if (threadIdx.x % 2 == 0) out[number] = shared[blockDim.x * stride + threadIdx.x / 2 % 4];
}
"""


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    folder = tmp_path_factory.mktemp("by_hand")
    source = folder / "by_hand.cu"
    source.write_text(BY_HAND)
    try:
        return Listing.of(recipe.compile_cubin(folder, source), "by_hand")
    except CompileError as error:
        pytest.skip(str(error))


def test_a_kernel_stores_what_its_source_says(by_hand: Listing) -> None:
    """A loop of other lengths in each block, lanes of a warp that part, a barrier, a division and atomics."""
    trips, memory = [3, 0, 11, 1], Memory(1 << 16)
    given = np.arange(len(trips) * THREADS, dtype=np.int32) - 50
    at = [memory.place(np.array(trips, np.int32)), memory.place(given), memory.place(4 * len(given))]
    machine = Machine(by_hand, (len(trips), 1), THREADS, 4 * (THREADS + 4), struct.pack("<QQQi", *at, 1), memory)
    machine.shared[:] = 0
    machine.run()
    stored = memory.read(at[2], 4 * len(given)).view(np.int32).reshape(len(trips), -1)
    total = given.reshape(len(trips), -1).astype(np.int64)
    for block, count in enumerate(trips):
        for i in range(count):
            total[block] = total[block] * 3 + i
    assert np.array_equal(stored[:, 1::2], np.trunc(total[:, ::2] / 7))
    for cell in range(4):
        assert (stored[:, 2 * cell :: 8] == total[:, 2 * cell :: 8].sum(1, keepdims=True)).all()


def test_fused_operations_round_once() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 2000))
    c = np.where(np.arange(2000) % 3, -a * b * (1 + random.integers(-3, 4, 2000) * 2.0**-52), random.normal(size=2000))
    exact = [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a, b, c, strict=True)]
    assert np.array_equal(rounding.fused_double(a, b, c), exact)
    assert not np.array_equal(a * b + c, exact)
    small = [value.astype(np.float32) for value in (a, b, c)]
    wide = [float(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))) for x, y, z in zip(*small, strict=True)]
    assert np.array_equal(rounding.fused(*small), np.array(wide).astype(np.float32))


def test_numbers_are_packed_into_halves_as_pytorch_rounds_them() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint32)
    bits[::2] &= 0xFFFF8000  # halfway between two bfloat16
    bits[1::4] = bits[1::4] & 0x8FFFF000 | 0x3C000000  # and between two float16
    values = torch.from_numpy(bits.view(np.float32)).nan_to_num(0.0)
    for dtype, convert in ((torch.bfloat16, rounding.bfloat16), (torch.float16, rounding.float16)):
        with np.errstate(over="ignore"):
            near, cut = convert(values.numpy()), convert(values.numpy(), cut=True)
        assert np.array_equal(near, values.to(dtype).view(torch.uint16).numpy())
        cut = torch.from_numpy(cut.astype(np.uint16)).view(dtype).float()
        assert (cut.abs() <= values.abs()).all() and (cut != values.to(dtype)).any()


def test_a_tensor_core_cuts_off_what_lies_below_the_largest_summand() -> None:
    products = np.array([[1.0, *[2.0**-24] * 7], [1.5, -1.0, 2.0**-30, *[0.0] * 5], [3.0, 0.25, *[0.0] * 6]])
    sums = rounding.accumulated(products, np.array([0.0, 0.5, -(2.0**-23)]))
    assert np.array_equal(sums, [1.0, 1.0, 3.25])


@pytest.fixture(scope="module")
def augmentation(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Listing], dict[str, recipe.Launch]]:
    folder = tmp_path_factory.mktemp("augmentation")
    try:
        cubin = recipe.compile_cubin(folder)
    except CompileError as error:
        pytest.skip(str(error))
    listings = {stage: Listing.of(cubin, kernel) for stage, kernel in recipe.KERNELS.items()}
    return listings, recipe.launches(folder, 32)


@pytest.mark.proof
def test_the_machine_code_of_the_augmentation_stores_the_bytes_of_the_cpu_ops(augmentation) -> None:
    policy = Policy.deit(32)
    recipe.interpret(*augmentation, recipe.draw(policy, 0, 24, 48, 60), policy)  # raises where a byte differs


@pytest.mark.proof
def test_the_last_stage_stores_sixteen_bytes(augmentation) -> None:
    assert any(found.opcode == "STG.E.128" for found in augmentation[0]["finish"].instructions)


@pytest.mark.proof
def test_an_instruction_that_is_read_wrongly_is_noticed(augmentation) -> None:
    listings, hosts = augmentation
    finish = listings["finish"]
    wrong = [
        dataclasses.replace(found, operands=(found.operands[0], found.operands[2], found.operands[1]))
        if found.base == "F2FP" else found
        for found in finish.instructions
    ]  # fmt: skip
    policy = Policy.deit(32)
    with pytest.raises(ValueError, match=r"finish: \d+ bytes differ"):
        changed = listings | {"finish": dataclasses.replace(finish, instructions=wrong)}
        recipe.interpret(changed, hosts, recipe.draw(policy, 0, 8, 48, 60), policy)


def test_every_logical_function_of_three_inputs_is_its_table() -> None:
    """The functions that are written out equal those that the table gives."""
    a, b, c = (np.array([0xF0, 0xCC, 0xAA], np.uint32)[i : i + 1] for i in range(3))  # bit 4a + 2b + c has them all
    for table in range(256):
        assert integers._lookup(table, a, b, c) & 0xFF == table, hex(table)
