"""The retention policy by itself: what it produces and evicts, from positions and blocks alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.retention import WINDOW, Place, Positions, Production, RetentionPolicy

BYTES = {"left": 12, "right": 8}
"""Of a row at each site."""
ROWS = 4


class Held(NamedTuple):
    """A block as the store holds it."""

    sites: tuple[str, ...]
    nbytes: int
    ready: bool = True


def layout_of(rows: tuple[int, ...]) -> Layout:
    return Layout(rows, {site: nbytes // 4 for site, nbytes in BYTES.items()}, "float32", chunk_bytes=2**20)


# ---- by hand: eight blocks of 4 rows at one site --------------------------------------------------------------------

BLOCKS = 8
LAYOUT = layout_of((ROWS,) * BLOCKS)
BLOCK_BYTES = ROWS * BYTES["left"]
ALL = {"left": ROWS * BLOCKS}


def at(
    reading: tuple[int, ...] = (), waiting: tuple[int, ...] = (), late: int = 0, pinned: int | None = None
) -> Positions:
    places = {
        block: Place(ROWS * BLOCKS, reading=block in reading, waiting=block in waiting)
        for block in {*reading, *waiting}
    }
    return Positions(places, frozenset([] if pinned is None else [pinned]), late * ROWS, ALL)


def held(*blocks: int, producing: tuple[int, ...] = ()) -> dict[int, Held]:
    return {b: Held(("left",), BLOCK_BYTES, ready=b not in producing) for b in (*blocks, *producing)}


CASES = {
    "nobody reads": (at(), held(), None),
    "a block that is waited for": (at(waiting=(3,)), held(), (3, ())),
    "the lowest that is waited for": (at(waiting=(5, 3)), held(), (3, ())),
    "what is waited for before what is next": (at(reading=(0,), waiting=(5,)), held(0), (5, ())),
    "the next one of a trial that reads": (at(reading=(0,)), held(0), (1, ())),
    "not what is in production": (at(waiting=(3,)), held(producing=(3, 4)), None),
    "nothing after the last block": (at(reading=(7,)), held(7), None),
    "the highest of what nobody will read is evicted": (at(waiting=(3,)), held(0, 1, 2, 7), (3, (2,))),
    "unread blocks above the slowest trial after those": (at(waiting=(1,)), held(0, 5, 6, 7), (1, (0,))),
    "the highest unread one for the slowest trial": (at(waiting=(1,)), held(4, 5, 6, 7), (1, (7,))),
    "no unread one for a faster trial": (at(reading=(0,), waiting=(4,)), held(0, 1, 2, 3), None),
    "not the next one of a trial that reads": (at(reading=(2,), waiting=(4,)), held(2, 3, 5, 6), None),
    "not what is in production, for room": (at(waiting=(3,)), held(producing=(0, 1, 2, 7)), None),
    "not the prefix that is kept for late trials": (at(waiting=(4,), late=8), held(0, 1, 2, 3), (4, (3,))),
    "the prefix where no trial is late": (at(waiting=(4,)), held(0, 1), (4, ())),
    "not what a lapsed trial pins": (at(waiting=(4,), pinned=3), held(0, 1, 2, 3), (4, (2,))),
}


@pytest.mark.parametrize("name", CASES)
def test_with_room_for_four_blocks_it_produces_and_evicts(name: str) -> None:
    positions, blocks, expected = CASES[name]
    step = RetentionPolicy(LAYOUT, 4 * BLOCK_BYTES, ALL).plan(positions, blocks)
    assert (None if step is None else (step.block, step.evict)) == expected


def test_it_looks_ahead_only_when_asked() -> None:
    policy = RetentionPolicy(LAYOUT, 4 * BLOCK_BYTES, ALL)
    assert policy.plan(at(reading=(0,)), held(0), ahead=False) is None
    assert policy.plan(at(reading=(0,), waiting=(5,)), held(0), ahead=False) == (5, ("left",), BLOCK_BYTES, ())


def test_a_block_is_produced_again_for_a_site_that_it_lacks_and_only_where_trials_reach_it() -> None:
    policy = RetentionPolicy(LAYOUT, 10**6, {"left": 32, "right": 8})
    places = {1: Place(8, reading=False, waiting=True), 2: Place(32, reading=False, waiting=True)}
    positions = Positions(places, frozenset(), 0, {"left": 32, "right": 8})
    both = ("left", "right")
    assert policy.plan(positions, {1: Held(("left",), 48)}) == Production(1, both, 80, ())
    assert policy.plan(positions, {1: Held(both, 80)}) == Production(2, ("left",), 48, ())


@pytest.mark.parametrize(("budget", "prefix"), [(8, 6), (5, 3), (3, 1), (2, 0), (1, 0)])
def test_the_prefix_is_what_fits_beside_the_window(budget: int, prefix: int) -> None:
    assert RetentionPolicy(LAYOUT, budget * BLOCK_BYTES, ALL).prefix == prefix


# ---- whatever the positions -----------------------------------------------------------------------------------------


class Case(NamedTuple):
    rows: tuple[int, ...]
    budget: int
    reach: dict[str, int]
    """Of all trials of the sweep."""
    positions: Positions
    held: dict[int, Held]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=8)))
    layout, total = layout_of(rows), sum(rows)
    reach = draw(st.dictionaries(st.sampled_from(sorted(BYTES)), st.integers(1, total), min_size=1))
    longest, everywhere = max(reach.values()), tuple(sorted(reach))
    blocks = layout.blocks_for(longest)
    place = st.tuples(st.integers(1, longest), st.booleans(), st.booleans()).filter(lambda p: p[1] or p[2])
    places = {
        block: Place(max(of_rows, layout.starts[block] + 1), reading, waiting)
        for block, (of_rows, reading, waiting) in draw(st.dictionaries(st.integers(0, blocks - 1), place)).items()
    }
    late = draw(st.sampled_from([0, longest]) | st.integers(0, longest))
    largest = max(layout.nbytes(block, everywhere) for block in range(blocks))
    budget = draw(st.integers(largest, blocks * largest))
    there: dict[int, Held] = {}
    for block in draw(st.lists(st.integers(0, blocks - 1), unique=True)):
        sites = draw(st.sampled_from([everywhere, everywhere[:1]]))
        nbytes = layout.nbytes(block, sites)
        if sum(its.nbytes for its in there.values()) + nbytes <= budget:
            there[block] = Held(sites, nbytes, draw(st.booleans()))
    pinned = frozenset(draw(st.lists(st.sampled_from(sorted(there)), unique=True)) if there else [])
    return Case(rows, budget, reach, Positions(places, pinned, late, reach), there)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_it_never_evicts_what_is_needed_and_never_goes_beyond_the_budget(case: Case) -> None:
    policy = RetentionPolicy(layout_of(case.rows), case.budget, case.reach)
    step = policy.plan(case.positions, case.held)
    if step is None:
        return
    places = case.positions.places
    needed = {*places, *(b + 1 for b, place in places.items() if place.reading), *case.positions.pinned}
    kept = min(policy.prefix - len(case.positions.pinned), policy.layout.blocks_for(case.positions.late_rows))
    for victim in step.evict:
        assert case.held[victim].ready, "what is in production cannot be evicted"
        assert victim not in needed
        assert victim >= kept, "a prefix stays for late trials"
    rest = {b: its.nbytes for b, its in case.held.items() if b != step.block and b not in step.evict}
    assert sum(rest.values()) + step.nbytes <= case.budget
    assert len(set(step.evict)) == len(step.evict)


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans())
def test_it_decides_as_the_store_did_before_it_was_taken_out(case: Case, ahead: bool) -> None:
    policy = RetentionPolicy(layout_of(case.rows), case.budget, case.reach)
    assert policy.plan(case.positions, case.held, ahead) == as_before(case, ahead)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_within_the_budget_nothing_is_evicted(case: Case) -> None:
    layout = layout_of(case.rows)
    everything = sum(layout.nbytes(block, tuple(case.reach)) for block in range(len(case.rows)))
    step = RetentionPolicy(layout, everything, case.reach).plan(case.positions, case.held)
    assert step is None or step.evict == ()


def as_before(case: Case, ahead: bool) -> Production | None:
    """The decision of the store of version 0.1, where it was spread over six methods."""
    layout, positions, blocks = layout_of(case.rows), case.positions, case.held
    at = positions.places

    def to_be_read(block: int, places: Mapping[int, Place] | list[int]) -> bool:
        if block >= len(layout.rows):
            return False
        return any(b <= block and at[b].rows > layout.starts[block] for b in places)

    sites = tuple(case.reach)
    reached = range(layout.blocks_for(max(case.reach.values(), default=0)))
    sizes = [layout.nbytes(block, sites) for block in reached]
    prefix = sum(total <= case.budget - WINDOW * max(sizes, default=0) for total in itertools.accumulate(sizes))
    in_use = set(at) | {b + 1 for b in at if at[b].reading} | positions.pinned
    waited = sorted(b for b in at if at[b].waiting)
    next_ones = sorted({b + 1 for b in at if to_be_read(b + 1, [b])} - set(waited))
    for block in [*waited, *next_ones] if ahead else waited:
        needed = tuple(sorted(s for s, rows in positions.reach.items() if rows > layout.starts[block]))
        there = blocks.get(block)
        if there is not None and (not there.ready or set(needed) <= set(there.sites)):
            continue
        nbytes = layout.nbytes(block, needed)
        free = case.budget - sum(b.nbytes for b in blocks.values()) + (blocks[block].nbytes if block in blocks else 0)
        chosen = []
        if free < nbytes:
            kept = min(prefix - len(positions.pinned), layout.blocks_for(positions.late_rows))
            ready = [b for b, its in blocks.items() if b >= kept and b not in in_use and its.ready]
            unread = sorted(b for b in ready if to_be_read(b, at) and b > block) if block <= min(at) + 1 else []
            evictable = unread + sorted(b for b in ready if not to_be_read(b, at))
            while free < nbytes and evictable:
                chosen.append(evictable.pop())
                free += blocks[chosen[-1]].nbytes
        if free >= nbytes:
            return Production(block, needed, nbytes, tuple(chosen))
    return None
