"""The pool of pages as a machine of states, beside a model of plain sets; names of pages."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from stepaudio_jax.inference.pages import PagePool, identities, page_names


class Pool(RuleBasedStateMachine):
    """Rows come with contents, find what is known, take the rest, name it and leave."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(12, 4)
        self.rows: list[tuple[list[int], list[bytes]]] = []
        self.content: dict[int, bytes] = {}

    @rule(stem=st.integers(0, 2), length=st.integers(1, 5))
    def come(self, stem, length):
        names = [bytes([stem, i]) for i in range(length)]
        found = self.pool.find(names)
        for page, name in zip(found, names, strict=False):
            assert self.content[page] == name
        needed = length - len(found)
        if needed > self.pool.available - self.pool.unheld(found):
            return
        self.pool.hold(found)
        fresh = self.pool.take(needed)
        held = {page for pages, _ in self.rows for page in pages}
        assert not held & set(fresh) and len(set(fresh)) == needed
        for page, name in zip(fresh, names[len(found) :], strict=True):
            self.content[page] = name
            self.pool.name(page, name)
        self.rows.append((found + fresh, names))

    @rule(data=st.data())
    def go(self, data):
        if self.rows:
            pages, _ = self.rows.pop(data.draw(st.integers(0, len(self.rows) - 1)))
            self.pool.release(pages)

    @rule()
    def forget(self):
        self.pool.clear()
        assert self.pool.kept == 0 and self.pool.find([bytes([0, 0])]) == []

    @invariant()
    def counts(self):
        held = {page for pages, _ in self.rows for page in pages}
        assert self.pool.used == len(held) and self.pool.available == 12 - len(held)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_longest_unused_goes_first_and_an_end_before_its_beginning():
    pool = PagePool(4, 4)
    first, second = pool.take(2), pool.take(2)
    for page, name in zip(first + second, (b"a0", b"a1", b"b0", b"b1"), strict=True):
        pool.name(page, name)
    pool.release(first)
    pool.release(second)
    pool.take(1)
    assert pool.find([b"a0", b"a1"]) == first[:1] and pool.find([b"b0", b"b1"]) == second


def test_a_pool_that_keeps_nothing_finds_nothing():
    pool = PagePool(2, 4, keep=False)
    pages = pool.take(1)
    pool.name(pages[0], b"x")
    pool.release(pages)
    assert pool.find([b"x"]) == [] and pool.kept == 0


def test_more_than_there_are():
    with pytest.raises(ValueError, match="3 asked for, 2 available"):
        PagePool(2, 4).take(3)


def test_names_tell_beginnings_apart():
    ids = np.arange(12)
    sound, other = b"0" * 16, b"1" * 16
    plain = page_names(identities(ids), 4)
    assert len(plain) == 3 and len(set(plain)) == 3
    assert page_names(identities(ids[:11]), 4) == plain[:2]
    assert page_names(identities(ids), 4, after=plain[:1]) == plain
    heard = page_names(identities(ids, [(5, 3)], [sound]), 4)
    assert heard[0] == plain[0] and heard[1] != plain[1] and heard[2] != plain[2]
    assert page_names(identities(ids, [(5, 3)], [other]), 4)[1] != heard[1]
    assert page_names(identities(ids, [(4, 3)], [sound]), 4)[1] != heard[1]
