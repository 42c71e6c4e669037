"""Who holds which block of the KV cache, and which blocks are worth keeping for a later prompt. Knows no tensor.

A block is storage for so many tokens of all layers. Block 0 is nobody's: padded tables point to it. A block is *held*
by one or more rows, *kept* for a prompt that may begin alike, or *free*. Kept blocks make room when rows need it, the
least recently used first.

Where `dense`, the blocks that rows hold stay at the bottom of the storage and the kept ones at its top, so that a pass
over what the rows hold is a pass over one view (`models/decode.py`). Data is then moved, by `move`, when a row ends,
and a row gets copies of kept blocks: tens of milliseconds for thousands of tokens. Elsewhere, which is where kernels
follow the tables, rows share them, and nothing moves.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

Move = Callable[[Sequence[int], Sequence[int]], None]  # copy the data of blocks to others, before any of them changes


class OutOfBlocks(RuntimeError):
    """No block is free, and none is kept that could make room."""


@dataclass(eq=False)
class Table:
    """One row's blocks, in the order of its tokens; `keys` name the content of the first of them."""

    blocks: list[int] = field(default_factory=list)
    keys: Sequence[bytes] = ()


class NumberSet:
    """Numbers, of which the lowest and the highest are found in O(log n)."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._set = set(numbers)
        self._rebuild()

    def __len__(self) -> int:
        return len(self._set)

    def __contains__(self, number: int) -> bool:
        return number in self._set

    def __iter__(self) -> Iterator[int]:
        return iter(self._set)

    def add(self, number: int) -> None:
        """Add a number."""
        self._set.add(number)
        heappush(self._low, number)
        heappush(self._high, -number)
        if len(self._low) + len(self._high) > 4 * len(self._set) + 64:
            self._rebuild()  # of what has been added, most is gone

    def remove(self, number: int) -> None:
        """Remove a number; its places in the heaps are dropped when they come up."""
        self._set.remove(number)

    def lowest(self) -> int:
        """The lowest number of a set that has one at least."""
        while self._low[0] not in self._set:
            heappop(self._low)
        return self._low[0]

    def highest(self) -> int:
        """The highest number of a set that has one at least."""
        while -self._high[0] not in self._set:
            heappop(self._high)
        return -self._high[0]

    def _rebuild(self) -> None:
        self._low = sorted(self._set)
        self._high = [-number for number in reversed(self._low)]


class BlockPool:
    """Blocks 1 to `count`, by number."""

    def __init__(self, count: int, move: Move, *, dense: bool, keep: bool = True) -> None:
        assert count > 0, f"a pool of {count} blocks"
        self.count = count
        self._move = move
        self._dense = dense
        self._keep = keep
        self._free = NumberSet(range(1, count + 1))
        self._holders: dict[int, int] = {}
        self._by_key: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._kept: OrderedDict[bytes, None] = OrderedDict()  # names of kept blocks, least recently used first
        self._kept_blocks = NumberSet()

    @property
    def held(self) -> int:
        """Blocks that rows hold."""
        return len(self._holders)

    @property
    def available(self) -> int:
        """Blocks that a row could get now."""
        return len(self._free) + len(self._kept)

    def known(self, keys: Sequence[bytes]) -> int:
        """How many of a prompt's first blocks are held or kept."""
        count = 0
        for key in keys:
            if key not in self._by_key:
                break
            count += 1
        return count

    def open(self, keys: Sequence[bytes], use: int) -> Table:
        """A row's table, which begins with what the first `use` keys name. Raises OutOfBlocks, and changes nothing."""
        table = Table(keys=keys)
        sources = [self._by_key[key] for key in keys[:use]]
        if not self._dense:
            for block in sources:
                self._holders[block] = self._holders.get(block, 0) + 1
                self._unkeep(block)
            table.blocks = sources
            return table
        for key in keys[:use]:
            if key in self._kept:
                self._kept.move_to_end(key)
        if self.available < use:
            raise OutOfBlocks(f"{use} blocks wanted, {self.available} of {self.count} available")
        for key in keys[:use]:
            # Each source is looked up when its turn comes: making room may have moved it, or taken it as the last.
            target = self._take()
            source = self._by_key.get(key)
            if source is None:
                self._give_back(target)
                break
            self._move([source], [target])
            table.blocks.append(target)
        return table

    def copy(self, source: Table, full: int, partial: int) -> Table:
        """A table that begins as another row's: its first `full` blocks, shared where rows may share, then `partial`.

        `partial` more are copied, as the new row goes on within them. Raises OutOfBlocks, and changes nothing.
        """
        shared = [] if self._dense else source.blocks[:full]
        copied = source.blocks[len(shared) : full + partial]
        if len(copied) > self.available:
            raise OutOfBlocks(f"{len(copied)} blocks wanted, {self.available} of {self.count} available")
        for block in shared:
            self._holders[block] += 1
        targets = [self._take() for _ in copied]
        self._move(copied, targets)
        return Table([*shared, *targets], source.keys)

    def shrink(self, table: Table, blocks: int) -> None:
        """Let a row hold no more than `blocks`."""
        rest = Table(table.blocks[blocks:])
        del table.blocks[blocks:]
        self.close(rest)

    def extend(self, table: Table, blocks: int) -> None:
        """Let a row hold `blocks` in all. Raises OutOfBlocks, and changes nothing."""
        wanted = blocks - len(table.blocks)
        if wanted > self.available:
            raise OutOfBlocks(f"{wanted} blocks wanted, {self.available} of {self.count} available")
        for _ in range(wanted):
            table.blocks.append(self._take())

    def name(self, table: Table, computed: int) -> None:
        """Name the first `computed` blocks of a row, which are full, so that later prompts may use them."""
        if not self._keep:
            return
        for block, key in zip(table.blocks[:computed], table.keys, strict=False):
            if key not in self._by_key and block not in self._keys:
                self._by_key[key] = block
                self._keys[block] = key

    def close(self, table: Table) -> None:
        """Take a row's blocks back; those with a name are kept."""
        moves: list[tuple[int, int]] = []
        for block in table.blocks:
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            del self._holders[block]
            if block not in self._keys:
                self._free.add(block)
            elif self._dense and self._free and (highest := self._free.highest()) > block:
                self._free.remove(highest)
                moves.append((block, highest))
            else:
                self._keep_block(block)
        self._move([source for source, _ in moves], [target for _, target in moves])
        for source, target in moves:
            self._rename(source, target)
            self._keep_block(target)
            self._free.add(source)
        table.blocks = []

    def compact(self, tables: Sequence[Table]) -> None:
        """Move what rows hold down into free blocks below; `tables` are those of all rows. For dense pools."""
        owners = {block: (table, place) for table in tables for place, block in enumerate(table.blocks)}
        assert len(owners) == len(self._holders), f"{len(owners)} of {len(self._holders)} held blocks have an owner"
        moves: list[tuple[int, int]] = []
        for block, target in zip(sorted(owners, reverse=True), sorted(self._free), strict=False):
            if target > block:
                break
            moves.append((block, target))
        self._move([source for source, _ in moves], [target for _, target in moves])
        for source, target in moves:
            self._free.remove(target)
            table, place = owners[source]
            table.blocks[place] = target
            self._holders[target] = self._holders.pop(source)
            self._rename(source, target)
            self._free.add(source)

    def forget_all(self) -> None:
        """Keep no block for later prompts."""
        for key in [*self._kept]:
            self._drop(self._by_key[key])

    def _take(self) -> int:
        """A block for a row: the lowest that is free, or what a kept one makes room for."""
        if not self._free:
            self._make_room()
        block = self._free.lowest()
        self._free.remove(block)
        self._holders[block] = 1
        return block

    def _make_room(self) -> None:
        victim = self._by_key[next(iter(self._kept))]
        self._drop(victim)
        if not self._dense or not self._kept_blocks or (lowest := self._kept_blocks.lowest()) > victim:
            return
        # The lowest makes room, so that rows stay together; what it holds takes the victim's place, and keeps its turn.
        self._move([lowest], [victim])
        self._rename(lowest, victim)
        self._kept_blocks.remove(lowest)
        self._kept_blocks.add(victim)
        self._free.remove(victim)
        self._free.add(lowest)

    def _give_back(self, block: int) -> None:
        del self._holders[block]
        self._free.add(block)

    def _keep_block(self, block: int) -> None:
        self._kept[self._keys[block]] = None
        self._kept_blocks.add(block)

    def _unkeep(self, block: int) -> None:
        if block in self._kept_blocks:
            self._kept_blocks.remove(block)
            del self._kept[self._keys[block]]

    def _drop(self, block: int) -> None:
        self._unkeep(block)
        self._forget(block)
        self._free.add(block)

    def _forget(self, block: int) -> None:
        key = self._keys.pop(block, None)
        if key is not None:
            del self._by_key[key]

    def _rename(self, source: int, target: int) -> None:
        key = self._keys.pop(source, None)
        if key is not None:
            self._keys[target] = key
            self._by_key[key] = target


def block_keys(ids: Sequence[int], marks: Sequence[tuple[int, bytes]], size: int) -> list[bytes]:
    """Names of a prompt's full blocks, each of all that comes before its end.

    `marks`: where an image begins, and the digest of its content, in order. An image is part of every block from
    that in which it begins.
    """
    digest = b""
    keys = []
    waiting = list(marks)
    for start in range(0, len(ids) - size + 1, size):
        inside = [mark for place, mark in waiting if place < start + size]
        waiting = waiting[len(inside) :]
        tokens = b"".join(token.to_bytes(4, "little") for token in ids[start : start + size])
        digest = hashlib.blake2b(b"".join([digest, *inside, tokens]), digest_size=16).digest()
        keys.append(digest)
    return keys
