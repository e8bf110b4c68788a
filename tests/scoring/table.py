"""Replies as models write them, each with the truth and whether it is right; and how well the rewards agree.

`replies/*.txt` hold sections. A section's head names the reward and what its replies have in common, and then, where
there are any, the options, further columns of the record, and the benchmark whose prompt the replies answer:

    == choice/denied | choices: dog | cat | extra: tolerance=1 | shape: mmsu
    + B :: The answer cannot be A, so it must be B.
    - B :: Answer: B⏎Wait, it is A.

A line is "+" for a right reply or "-" for a wrong one, the truth, and the reply; ⏎ is a new line and ⟨202F⟩ the
character of that number. The labels were given by hand: of later.txt, third.txt, fourth.txt, fifth.txt and sixth.txt
before they were first scored, of the others before the code that is measured was written.

`python -m tests.scoring.table` prints precision and recall of each kind, each disagreement, and the time of a score.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("replies")
_CHARACTER = re.compile("⟨([0-9A-F]{4})⟩")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One reply.

    Attributes:
      reward, topic: "choice" and "denied" of the section "choice/denied".
      right: whether a careful person would mark it right.
      extra: the record's other columns, `choices` among them.
      shape: the benchmark whose prompt is answered; "" for none.
      where: its file and line.
    """

    reward: str
    topic: str
    truth: str
    reply: str
    right: bool
    extra: Mapping[str, Any]
    shape: str
    where: str

    @property
    def mixed(self) -> bool:
        """Is some of it Chinese, Japanese or Korean, or in full-width forms?"""
        text = " ".join([self.reply, self.truth, *self.extra.get("choices", ())])
        return bool(re.search("[\u3000-\u9fff\uff00-\uffef\uac00-\ud7af]", text))


def entries(folder: Path = FOLDER) -> list[Entry]:
    """All of them, in the order of the files."""
    return [entry for path in sorted(folder.glob("*.txt")) for entry in _read(path)]


def _read(path: Path) -> Iterator[Entry]:
    reward = topic = shape = ""
    extra: dict[str, Any] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path.name}:{number}"
        if line.startswith("== "):
            reward, topic, shape, extra = _head(line[3:])
        elif line.strip():
            truth, _, reply = line[2:].partition(" ::")
            assert line[:2] in ("+ ", "- ") and " ::" in line, f"{where}: expected '+ truth :: reply'"
            reply = reply.removeprefix(" ").replace("⏎", "\n")
            reply = _CHARACTER.sub(lambda match: chr(int(match.group(1), 16)), reply)
            yield Entry(reward, topic, truth, reply, line[0] == "+", extra, shape, where)


def _head(text: str) -> tuple[str, str, str, dict[str, Any]]:
    name, *rest = text.split(" | ")
    reward, _, topic = name.strip().partition("/")
    extra: dict[str, Any] = {}
    shape = ""
    for part in rest:
        if part.startswith("choices: "):
            extra["choices"] = [part.removeprefix("choices: ")]
        elif part.startswith("shape: "):
            shape = part.removeprefix("shape: ").strip()
        elif part.startswith("extra: "):
            key, _, value = part.removeprefix("extra: ").partition("=")
            extra[key] = True if value == "true" else float(value)
        else:
            extra["choices"].append(part)
    return reward, topic, shape, extra


@dataclasses.dataclass
class Agreement:
    """Counts over a kind of entries.

    Attributes:
      said_right: replies that were scored right; of them `rightly` are. right: replies that are. errors: those that the
        reward raised an error at, instead of scoring.
    """

    n: int = 0
    right: int = 0
    said_right: int = 0
    rightly: int = 0
    errors: int = 0

    @property
    def precision(self) -> float:
        return self.rightly / self.said_right if self.said_right else 1.0

    @property
    def recall(self) -> float:
        return self.rightly / self.right if self.right else 1.0

    def add(self, right: bool, said: float | None) -> None:
        self.n, self.right = self.n + 1, self.right + right
        self.said_right, self.rightly = self.said_right + (said == 1), self.rightly + (said == 1 and right)
        self.errors += said is None


@dataclasses.dataclass(frozen=True)
class Measured:
    """Agreement over all entries and by kind, and what was scored otherwise than it is labelled."""

    by_kind: Mapping[str, Agreement]
    disagreements: Sequence[tuple[Entry, float | str]]
    seconds: Mapping[str, Sequence[float]]


def measure(some: Sequence[Entry], rewards: Sequence[str] = ("choice", "number", "maths", "exact")) -> Measured:
    """Scores entries with the registered rewards: maths in worker processes, as a run does, the others here."""
    from stepaudio_jax.rl.rewards import RewardRunner, Sample, resolve

    by_kind: dict[str, Agreement] = {"all": Agreement()}
    disagreements: list[tuple[Entry, float | str]] = []
    seconds: dict[str, list[float]] = {}
    some = [entry for entry in some if entry.reward in rewards]
    with RewardRunner(workers=1) as runner:
        if any(not resolve(entry.reward).cheap for entry in some):
            runner.score([Sample("", "1", True, False, "1")], "maths")  # what a worker imports is not a score's time
        for entry in some:
            sample = Sample("", entry.reply, True, False, entry.truth, dict(entry.extra))
            begin = time.perf_counter()
            (scored,) = runner.score([sample], entry.reward)
            seconds.setdefault(entry.reward, []).append(time.perf_counter() - begin)
            for kind in ("all", entry.reward, f"{entry.reward}/{entry.topic}"):
                by_kind.setdefault(kind, Agreement()).add(entry.right, scored.value)
            if scored.value != float(entry.right):
                disagreements.append((entry, scored.error or scored.value or 0.0))
    return Measured(by_kind, disagreements, seconds)


def main() -> None:
    measured = measure(entries(), sys.argv[1:] or ("choice", "number", "maths", "exact"))
    for entry, got in measured.disagreements:
        choices = " of " + " | ".join(entry.extra["choices"]) if "choices" in entry.extra else ""
        mark = "right" if entry.right else "WRONG"
        print(f"{entry.where}: {entry.reward}: {mark} for {entry.truth!r}{choices}: {entry.reply!r} -> {got}")
    print(f"\n{'kind':28}{'n':>6}{'right':>7}{'precision':>11}{'recall':>9}{'errors':>8}")
    for kind, each in sorted(measured.by_kind.items()):
        print(f"{kind:28}{each.n:6}{each.right:7}{each.precision:11.3f}{each.recall:9.3f}{each.errors:8}")
    for reward, times in measured.seconds.items():
        ordered = sorted(times)
        print(f"{reward}: median {ordered[len(ordered) // 2] * 1e6:.0f} µs, longest {ordered[-1] * 1e3:.1f} ms a score")


if __name__ == "__main__":
    main()
