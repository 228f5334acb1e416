"""The bytes of saved lanes: one arena of equal blocks, used again and again.

Memory that is touched for the first time costs a page fault every 4 KiB, about thirty
times what copying into it costs, and huge pages may have to wait for the kernel to compact memory.
So freed blocks are taken first, only a cache that grows meets new pages, and while there is
nothing to compute those that it will meet next are touched beforehand.

Blocks can be lent: whoever writes them to the disk, or reads them from there, on another
thread, has them to itself until it gives them back. Nothing is copied for that.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 256 * 1024

Bytes = NDArray[np.uint8]


class HostMemory:
    """Byte strings by key, within a fixed size.

    Mutable state: the blocks of each key, the free blocks, how many were ever touched, the
    staging buffer and how much of it was. Owner: the step loop's thread; blocks that are
    lent are touched by the borrower alone.
    """

    def __init__(self, size_bytes: int) -> None:
        """Reserve address space for `size_bytes`; memory is taken as it is used or made ready."""
        self.blocks = size_bytes // BLOCK_BYTES
        self._arena = _anonymous(max(1, self.blocks) * BLOCK_BYTES).reshape(-1, BLOCK_BYTES)
        self._free = list(range(self.blocks - 1, -1, -1))
        self._held: dict[int, tuple[int, list[int]]] = {}  # key -> (bytes, blocks)
        self._lent: dict[int, list[int]] = {}
        self._borrowed: dict[int, list[int]] = {}
        self._touched = 0  # blocks below this one were touched; those above are free
        self._staging = _anonymous(BLOCK_BYTES)
        self._staged = 0  # bytes of it that were touched

    @property
    def lent_bytes(self) -> int:
        """What the blocks that `lend` has lent amount to."""
        return sum(map(len, self._lent.values())) * BLOCK_BYTES

    @property
    def ready_bytes(self) -> int:
        """What the free blocks that were touched before amount to."""
        return (len(self._free) - (self.blocks - self._touched)) * BLOCK_BYTES

    def make_ready(self, *, ahead: int, staging: int) -> bool:
        """Touch one block of what will be used next; False when enough is ready.

        Enough are `ahead` bytes of free blocks and `staging` bytes of the staging buffer.
        Takes less than a millisecond.
        """
        if self._staged < staging:
            self._grow_staging(staging)
            end = min(self._staged + BLOCK_BYTES, staging)
            self._staging[self._staged : end : mmap.PAGESIZE] = 0
            self._staged = end
            return True
        if self._touched < self.blocks and self.ready_bytes < ahead:
            self._arena[self._touched, :: mmap.PAGESIZE] = 0
            self._touched += 1
            return True
        return False

    def staging(self, size: int) -> Bytes:
        """A buffer of `size` bytes, valid until the next call."""
        if self._staging.size < size:
            # Twice as large as before: a little more each time would be new pages each time.
            self._grow_staging(max(size, 2 * self._staging.size))
        self._staged = max(self._staged, size)
        return self._staging[:size]

    def put(self, key: int, data: Bytes) -> None:
        """Keep a copy of `data`. Raises `MemoryError` when the blocks do not suffice."""
        taken = self._take(data.size)
        for number, block in enumerate(taken):
            part = data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            self._arena[block, : part.size] = part
        self._held[key] = (data.size, taken)

    def get(self, key: int) -> Bytes:
        """What was kept under `key`, in the staging buffer."""
        size, blocks = self._held[key]
        data = self.staging(size)
        for number, block in enumerate(blocks):
            part = data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            part[:] = self._arena[block, : part.size]
        return data

    def size(self, key: int) -> int:
        """The bytes kept under `key`."""
        return self._held[key][0]

    def drop(self, key: int) -> None:
        """Forget `key`; its blocks are the next to be used."""
        self._free += self._held.pop(key)[1]

    def lend(self, key: int) -> list[Bytes]:
        """Forget `key` and lend its blocks, in order, until `give_back`."""
        size, blocks = self._held.pop(key)
        self._lent[key] = blocks
        return self._views(size, blocks)

    def borrow(self, key: int, size: int) -> list[Bytes]:
        """Lend free blocks for `size` bytes that will be `key`'s, until `fill`.

        Raises `MemoryError` when the blocks do not suffice.
        """
        self._borrowed[key] = self._take(size)
        return self._views(size, self._borrowed[key])

    def fill(self, key: int, size: int) -> None:
        """Blocks that were borrowed hold `size` bytes now, which are kept under `key`."""
        self._held[key] = (size, self._borrowed.pop(key))

    def give_back(self, key: int) -> None:
        """The blocks that were lent or borrowed under `key` are free."""
        self._free += (self._lent if key in self._lent else self._borrowed).pop(key)

    def _take(self, size: int) -> list[int]:
        count = -(-size // BLOCK_BYTES)
        if count > len(self._free):
            raise MemoryError(f"{count} blocks needed, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        self._touched = max([self._touched, *(block + 1 for block in taken)])
        return taken

    def _grow_staging(self, size: int) -> None:
        if self._staging.size < size:
            self._staging = _anonymous(-(-size // BLOCK_BYTES) * BLOCK_BYTES)
            self._staged = 0

    def _views(self, size: int, blocks: Sequence[int]) -> list[Bytes]:
        used = -(-size // BLOCK_BYTES)  # what was read may need fewer than were borrowed
        ends = (min(BLOCK_BYTES, size - number * BLOCK_BYTES) for number in range(used))
        return [self._arena[block, :end] for block, end in zip(blocks, ends, strict=False)]


def _anonymous(size: int) -> Bytes:
    """Zeroed memory of small pages, taken from the system when first touched."""
    return np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
