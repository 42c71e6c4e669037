"""Random lives of tables against a plain list per row. No tensor: data is bytes per block, moved as the pool says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.blocks import BlockPool, OutOfBlocks, Table, block_keys

SIZE = 4


class World:
    """A pool, what is in its blocks, and what each row must find in its own."""

    def __init__(self, count: int, *, dense: bool) -> None:
        self.data: dict[int, bytes] = {}
        self.pool = BlockPool(count, self.move, dense=dense)
        self.dense = dense
        self.count = count
        self.rows: dict[Table, list[bytes]] = {}
        self.clock = 0

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        assert len(set(targets)) == len(targets) == len(sources)
        found = [self.data.get(source, b"") for source in sources]
        self.data.update(zip(targets, found, strict=True))

    def open(self, prompt: Sequence[int], extra: int) -> None:
        keys = block_keys(prompt, [], SIZE)
        use = min(self.pool.known(keys), (len(prompt) - 1) // SIZE)
        try:
            table = self.pool.open(keys, use)
        except OutOfBlocks:
            assert self.pool.available < use
            return
        known = len(table.blocks)
        assert [self.data[block] for block in table.blocks] == keys[:known], "a prefix that is not the prompt's"
        blocks = -(-len(prompt) // SIZE) + extra
        self.rows[table] = keys[:known]
        if self.pool.available < blocks - known:
            with pytest.raises(OutOfBlocks):
                self.pool.extend(table, blocks)
            self.close(table)
            return
        self.pool.extend(table, blocks)
        for place, block in enumerate(table.blocks[known:], start=known):
            self.clock += 1
            content = keys[place] if place < len(keys) else b"row %d" % self.clock
            self.data[block] = content
            self.rows[table].append(content)
        self.pool.name(table, len(keys))

    def copy(self, source: Table, blocks: int) -> None:
        """A row that begins as another, and shares or copies its first blocks."""
        contents = self.rows[source][:blocks]
        partial = int(bool(contents))
        full = len(contents) - partial
        try:
            table = self.pool.copy(source, full, partial)
        except OutOfBlocks:
            assert self.pool.available < (len(contents) if self.dense else partial)
            return
        self.rows[table] = contents

    def shrink(self, table: Table, blocks: int) -> None:
        self.pool.shrink(table, blocks)
        del self.rows[table][blocks:]
        assert len(table.blocks) <= blocks

    def close(self, table: Table) -> None:
        del self.rows[table]
        self.pool.close(table)
        assert table.blocks == []

    def check(self) -> None:
        for table, contents in self.rows.items():
            assert [self.data[block] for block in table.blocks] == contents
        held = [block for table in self.rows for block in table.blocks]
        if self.dense:
            assert len(set(held)) == len(held), "two rows in one block"
        assert self.pool.held == len(set(held))
        assert self.pool.held + self.pool.available == self.count
        assert 0 not in held


@given(
    st.lists(
        st.tuples(st.sampled_from(["open", "open", "copy", "shrink", "close", "compact"]), st.randoms()), max_size=60
    ),
    st.integers(1, 30),
    st.booleans(),
)
def test_every_row_keeps_its_own_and_nothing_is_lost(
    actions: list[tuple[str, object]], count: int, dense: bool
) -> None:
    world = World(count, dense=dense)
    for action, chance in actions:
        random: object = chance
        match action:
            case "open":
                prefix = [random.randint(0, 1)] * (SIZE * random.randint(0, 4))  # type: ignore[attr-defined]
                own = [random.randint(0, 3) for _ in range(random.randint(1, 9))]  # type: ignore[attr-defined]
                world.open([*prefix, *own], random.randint(0, 2))  # type: ignore[attr-defined]
            case "copy" if world.rows:
                world.copy(random.choice(list(world.rows)), random.randint(0, 5))  # type: ignore[attr-defined]
            case "shrink" if world.rows:
                world.shrink(random.choice(list(world.rows)), random.randint(0, 4))  # type: ignore[attr-defined]
            case "close" if world.rows:
                world.close(random.choice(list(world.rows)))  # type: ignore[attr-defined]
            case "compact" if dense:
                world.pool.compact(list(world.rows))
                held = sorted(block for table in world.rows for block in table.blocks)
                free_below = [block for block in world.pool._free if held and block < held[-1]]
                assert not free_below, "what is held has come together"
        world.check()
    for table in list(world.rows):
        world.close(table)
    assert (world.pool.held, world.pool.available) == (0, count)


def test_an_image_is_part_of_the_names_from_where_it_begins() -> None:
    ids = [1, 2, 3, 4, 9, 9, 9, 9, 5, 6, 7, 8]
    one, other, none = (block_keys(ids, marks, SIZE) for marks in ([(4, b"one")], [(4, b"other")], []))
    assert one[0] == other[0] == none[0]
    assert len({one[1], other[1], none[1]}) == len({one[2], other[2], none[2]}) == 3


def test_the_least_recently_used_makes_room() -> None:
    world = World(6, dense=False)
    prompts = [[n] * SIZE + [0] for n in range(3)]
    for prompt in prompts:
        world.open(prompt, 0)
        world.close(next(iter(world.rows)))
    world.open(prompts[0], 0)  # used again
    world.close(next(iter(world.rows)))
    world.open([7] * (4 * SIZE), 0)
    known = [world.pool.known(block_keys(prompt, [], SIZE)) for prompt in prompts]
    assert known == [1, 0, 1]


def test_a_pool_that_keeps_nothing_knows_nothing() -> None:
    pool = BlockPool(4, lambda _sources, _targets: None, dense=True, keep=False)
    keys = block_keys([1] * SIZE, [], SIZE)
    table = pool.open(keys, 0)
    pool.extend(table, 1)
    pool.name(table, 1)
    pool.close(table)
    assert pool.known(keys) == 0


def operations(work: Callable[[], object]) -> int:
    """How many bytecodes a call executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("dense", [True, False])
def test_room_in_a_pool_full_of_kept_blocks_costs_the_same_however_many_they_are(dense: bool) -> None:
    found = []
    for count in (200, 6400):
        pool = BlockPool(count, lambda _sources, _targets: None, dense=dense)
        for number in range(count):
            key = number.to_bytes(4, "little")
            table = Table(keys=[key])
            pool.extend(table, 1)
            pool.name(table, 1)
            pool.close(table)
        assert pool.known([b"\0\0\0\0"]) == 1
        row = Table()
        found.append(operations(lambda pool=pool, row=row: pool.extend(row, 64)))  # type: ignore[misc]
        assert len(set(row.blocks)) == 64
    few, many = found
    assert many < 2 * few
