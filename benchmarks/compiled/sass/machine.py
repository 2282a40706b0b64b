"""Runs the machine code of a kernel (sm_80, sm_90) on the CPU, instruction by instruction.

    listing = Listing.of(cubin, "resize_kernel")
    Machine(listing, grid=(8, 3), threads=256, shared_bytes=70_000, parameters=bytes_, memory=memory).run()

All threads of all blocks are lanes of NumPy arrays: a step runs one instruction for every lane that has come to it. The
lanes at the lowest address go first, which brings a warp's lanes together where the compiler meant them to meet.

With `checked` it reports, whatever the order in which lanes went: two warps that access a byte of shared or global
memory, one of them storing, with no barrier between; a copy (LDGSTS) that is read or overwritten before it was waited
for; a load of shared, local or global memory that nobody has stored; lanes that store different values at one address.
Always: an address outside of what the kernel was given, and an exchange with a lane that takes no part.

NVIDIA does not document what the instructions do. That a kernel stores the CPU's bytes, or results as near to float64
as they should be, is the proof that those it executes are read correctly. An instruction that is not known ends the
run, and so does an unknown form of one that is.

What it does not model:
- Time, and with it the stall counts and scoreboards in the binary's control bits: a result is there at once, so code
  that reads a register too early runs as if it had waited.
- Which part of a warp goes first where its lanes part, and so whether it issues what follows once or twice. Lanes of
  one warp never race with each other.
- The last bits of MUFU's approximations (here rounded correctly), and FTZ: small numbers stay.
- How many bits HMMA keeps below its largest summand: `rounding.accumulated` has the fewest that were found on an A100.
- Registers that nobody has written: they are 0. Caches, and the order in which other blocks see what a block stores.
- HGMMA, TMA and all else of sm_90's attention: its loss and the augmentation run, its attention is compiled only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass import floating, flow, integers, warp  # noqa: F401  they register their instructions
from benchmarks.compiled.sass.listing import Listing
from benchmarks.compiled.sass.memory import Fault
from benchmarks.compiled.sass.operands import compiled
from benchmarks.compiled.sass.state import Active, State

_NOWHERE = np.int32(2**31 - 1)


class Machine(State):
    """A grid of blocks that runs a listing.

    Args:
        grid: blocks along x and y; block (x, y) has number y * grid.x + x. Those of one x are a cluster, should the
            kernel have a barrier for it.
        shared_bytes: dynamic shared memory of a block.
        parameters: of the kernel, as they lie in memory.
        checked: whether to look for races and for loads of what nobody stored.
    """

    def __init__(self, listing: Listing, *arguments: Any, **options: Any) -> None:
        super().__init__(listing, *arguments, **options)
        self._code = [compiled(self, instruction) for instruction in listing.instructions]

    def run(self) -> None:
        """Run all threads to their ends.

        Raises:
            RuntimeError: threads of a block wait at a barrier that others never reach; a `Fault`: what `checked` finds.
            NotImplementedError: an instruction that is not known.
            IndexError, ValueError: an address outside the memory, or one that the access may not have.
        """
        with np.errstate(all="ignore"):
            try:
                while (ready := self.alive & ~self.waiting).any():
                    self._run_group(ready)
            except (Fault, IndexError, ValueError) as error:
                raise type(error)(f"{self.listing.instructions[self.now]}: {error}") from error
        if self.waiting.any():
            raise RuntimeError("some threads of a block wait at a barrier that others never reach")

    def _run_group(self, ready: NDArray) -> None:
        """The lanes with the lowest address, until they part, stop at a barrier, or come to where others are."""
        places = np.where(ready, self.pc, _NOWHERE)
        at = int(places.min())
        mask = places == at
        others = int(np.where(mask, _NOWHERE, places).min())
        active = Active.of(mask)
        while at < others:
            self.now = at
            goto = self._code[at](active)
            at += 1
            if callable(goto):
                goto(mask, at)
                return
            at = at if goto is None else goto
        self.pc[mask] = at
