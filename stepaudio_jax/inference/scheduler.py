"""Who runs, who waits, and who holds which pages: decisions of the host, the same on every process of a mesh."""

from __future__ import annotations

from stepaudio_jax.inference.pages import PagePool, page_names
from stepaudio_jax.inference.row import Row
from stepaudio_jax.inference.waiting import WaitingList


class Scheduler:
    """Rows on their way in and out.

    Attributes:
      running: rows that hold a place and pages, in order of admission.
      waiting: the others.
      pools: the pages of each lane.
      interruptions: rows that gave up their pages to others.
      cached_tokens: of prompts that were found in the cache when their rows came in.
    """

    def __init__(self, pools: list[PagePool], max_rows: int, *, share_prefixes: bool = True):
        """`max_rows`: of each lane."""
        self.pools, self.max_rows, self.share_prefixes = pools, max_rows, share_prefixes
        self.page_size = pools[0].page_size
        self.waiting: WaitingList[Row] = WaitingList()
        self.running: list[Row] = []
        self.interruptions = self.cached_tokens = 0

    def admit(self) -> list[Row]:
        """Lets in whoever is next as long as there are places and pages; nobody overtakes one who waits for pages."""
        admitted: list[Row] = []
        if not self.waiting:
            return admitted
        being_filled = {name for row in self.running for name in row.names[row.computed // self.page_size :]}
        for row in self.waiting.in_order():
            if not row.names:
                row.names = page_names(row.all_identities(), self.page_size)
            lane = self._lane_for(row)
            if lane is None:
                break
            pool = self.pools[lane]
            sharable = (row.length - 1) // self.page_size  # its last token is each row's own to compute
            found = pool.find(row.names)[:sharable]
            following = row.names[len(found) : sharable]
            if self.share_prefixes and following and following[0] in being_filled:
                continue  # another row is computing its next page: it comes when that is done
            needed = self._pages_for(row.length + 1) - len(found)
            if needed > pool.available - pool.unheld(found):
                break
            pool.hold(found)
            row.pages = found + pool.take(needed)
            row.computed, row.lane = len(found) * self.page_size, lane
            row.place = min(set(range(self.max_rows)) - {other.place for other in self.running if other.lane == lane})
            self.waiting.start(row)
            self.running.append(row)
            admitted.append(row)
            being_filled.update(row.names[len(found) :])
            if not row.writer.token_ids:
                self.cached_tokens += row.computed
                row.writer.found_in_cache(row.computed)
        return admitted

    def _lane_for(self, row: Row) -> int | None:
        """Of the lanes with a free place the one that knows most of the prompt, then has the most pages."""
        taken = [sum(row.lane == lane for row in self.running) for lane in range(len(self.pools))]
        free = [lane for lane, count in enumerate(taken) if count < self.max_rows]
        if len(free) < 2:
            return free[0] if free else None
        return max(free, key=lambda lane: (len(self.pools[lane].find(row.names)), self.pools[lane].available, -lane))

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def advance(self, row: Row, computed: int) -> None:
        """The row's first `computed` tokens are in the cache; pages that are full can be found from now on."""
        full = computed // self.page_size
        if full > len(row.names):
            row.names = page_names(row.all_identities()[:computed], self.page_size, after=row.names)
        for page in range(row.computed // self.page_size, full):
            self.pools[row.lane].name(row.pages[page], row.names[page])
        row.computed = computed

    def make_room(self, deciding: list[Row], steps: int) -> list[Row]:
        """Pages for the tokens of so many steps. Where there are too few, whoever came last, of the lowest priority,
        goes back to wait; the first of the highest priority never does. Gives the rows that are left."""
        for row in sorted(deciding, key=self._rank):
            if row.place < 0:
                continue  # gone back already
            pool = self.pools[row.lane]
            needed = self._pages_for(row.length - 1 + min(steps, row.remaining)) - len(row.pages)
            while needed > pool.available and row.place >= 0:
                self.interrupt(max((other for other in self.running if other.lane == row.lane), key=self._rank))
            if needed > 0 and row.place >= 0:
                row.pages += pool.take(needed)
        return [row for row in deciding if row.place >= 0]

    def _rank(self, row: Row) -> tuple[int, int]:
        return row.request.priority, self.running.index(row)

    def interrupt(self, row: Row) -> None:
        """The row gives up its pages and waits, before all others, to go on from where it was."""
        self.leave(row)
        row.computed = 0
        self.waiting.put_back(row)
        self.interruptions += 1

    def leave(self, row: Row) -> None:
        """The row runs no more."""
        self.running.remove(row)
        self.pools[row.lane].release(row.pages)
        row.pages, row.place = [], -1

    def drop(self, request_id: str) -> None:
        """Forgets a request, wherever it is; one that is not known is ignored."""
        for row in [row for row in self.running if row.id == request_id]:
            self.leave(row)
        for row in [row for row in self.waiting if row.id == request_id]:
            self.waiting.remove(row)

    def forget_content(self) -> None:
        """The weights have changed: what rows have in the cache is to be computed again."""
        for row in reversed(self.running.copy()):
            self.interrupt(row)
        for pool in self.pools:
            pool.clear()
