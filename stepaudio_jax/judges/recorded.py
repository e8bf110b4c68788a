"""A judge's replies in a file: asked once, remembered by what was asked; and read back without the judge.

    FILE    a line of JSON for each reply: {"judge", "question" (its digest), "text" or "error"}, in order

An error is written down too, so that a run read back from its file is the same; a judge that is there is asked again.
Of several processes the first reads and writes; all know what it has read.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence

from etils import epath

from stepaudio_jax.data.pieces import write_whole
from stepaudio_jax.judges.protocol import Counters, Judge, Question, Reply
from stepaudio_jax.parallel.first import is_first, of_first

PORTION = 64
"""Questions after which replies are written down: what was paid for is not lost with the process."""


class Recorded:
    """A judge with a memory on disk; without a judge, a replay of one.

    Raises:
      ValueError: a line of the file, other than a last one that was cut off, is no reply.
    """

    def __init__(self, path: epath.PathLike, judge: Judge | None, *, name: str | None = None):
        """
        Args:
          name: of the judge that is replayed; by default of any there is in the file.
        """
        self._path, self._judge = epath.Path(path), judge
        self.name = judge.name if judge else name or "replay"
        self.counters = judge.counters if judge else Counters()
        wanted = judge.name if judge else name
        self._known: dict[str, collections.deque[Reply]] = collections.defaultdict(collections.deque)
        for digest, text, error in of_first(lambda: _read(self._path, wanted, mend=judge is not None)):
            self._known[digest].append(Reply(text, error))

    def __call__(self, questions: Sequence[Question]) -> list[Reply]:
        digests = [question.digest for question in questions]
        first: dict[str, Question] = {}  # of those that are the same, one is asked
        for digest, question in zip(digests, questions, strict=True):
            first.setdefault(digest, question)
        found = {digest: reply for digest in first if (reply := self._recall(digest)) is not None}
        self.counters.recalled += sum(digest in found for digest in digests)
        self.counters.asked += len(digests)
        missing = [digest for digest in first if digest not in found]
        if missing and self._judge is None:
            self.counters.errors["not in the file"] += len(missing)
            found |= dict.fromkeys(missing, Reply(error="not in the file"))
        elif missing and self._judge is not None:
            for at in range(0, len(missing), PORTION):
                some = missing[at : at + PORTION]
                new = list(zip(some, self._judge([first[digest] for digest in some]), strict=True))
                self.counters.asked -= len(some)  # which the judge has counted itself
                self._write(new)
                found |= dict(new)
        return [found[digest] for digest in digests]

    def _recall(self, digest: str) -> Reply | None:
        """In a replay one reply after another as they came, the last one from then on; else what is no error."""
        replies = self._known.get(digest)
        if not replies:
            return None
        if self._judge is None:
            return replies.popleft() if len(replies) > 1 else replies[0]
        return replies[-1] if replies[-1].error is None else None

    def _write(self, new: list[tuple[str, Reply]]):
        lines = []
        for digest, reply in new:
            self._known[digest].append(reply)
            said = {"text": reply.text} if reply.error is None else {"error": reply.error}
            lines.append(json.dumps({"judge": self.name, "question": digest} | said) + "\n")
        if not is_first():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write("".join(lines))


def _read(path: epath.Path, judge: str | None, *, mend: bool) -> list[tuple[str, str | None, str | None]]:
    """(Digest of the question, text, error) of each line."""
    if not path.exists():
        if mend:
            return []
        raise ValueError(f"{path}: expected a file of a judge's replies, found none")
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if mend and whole != text:
        write_whole(path, whole.encode())
    found = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            values = json.loads(line)
            reply = Reply(values.get("text"), values.get("error"))
            if judge is None or values["judge"] == judge:
                found.append((str(values["question"]), reply.text, reply.error))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected a judge's reply, found {line[:80]!r}") from error
    return found
