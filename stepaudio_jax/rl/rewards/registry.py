"""Rewards by name: registered ones, and any function by "package.module:function"."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import reprlib
import struct
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from stepaudio_jax.rl.rewards.sample import Sample, Scored

LONGEST_MESSAGE = 1000
"""Characters of an error's message that are kept."""

RewardFunction = Callable[..., Any]
"""(sample, **options) → a number."""

F = TypeVar("F", bound=RewardFunction)
T = TypeVar("T")


class GarbageError(ValueError):
    """A reward that returned something other than a number within its bounds."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A reward function and what its author says of it.

    Attributes:
      name: what it is registered as, or its address.
      address: "package.module:function", by which worker processes find it.
      cheap: pure, free of hangs and quick on any text: it may run in the caller's own process.
      lowest, highest: the bounds of its values.
      seconds: how long it may take for one sample.
      runs_code: it executes what the model wrote, and takes an option `allow_code`, see `RewardRunner`.
      wraps: the option that names another reward, and which the function receives as (sample) → float.
    """

    function: RewardFunction
    name: str
    address: str
    cheap: bool = False
    lowest: float = -math.inf
    highest: float = math.inf
    seconds: float = 10.0
    runs_code: bool = False
    wraps: str | None = None


_entries: dict[str, Entry] = {}
_noted: ContextVar[set[str] | None] = ContextVar("noted", default=None)


def register(name: str, **traits: Any) -> Callable[[F], F]:
    """Decorator: makes a function a reward of that name; traits are the attributes of `Entry`.

    Raises:
      ValueError: a name with a colon or one that is taken; a function that no import can reach.
    """
    if ":" in name or not name:
        raise ValueError(f'reward: expected a name without a colon to register, found "{name}"')

    def add(function: F) -> F:
        entry = Entry(function, name, _address(function), **traits)
        taken = _entries.get(name)
        if taken is not None and taken.address != entry.address:
            raise ValueError(f'reward "{name}": is {taken.address} already, cannot be {entry.address} too')
        _entries[name] = entry
        return function

    return add


def accuracy(name: str, **traits: Any) -> Callable[[Callable[..., Any]], RewardFunction]:
    """Like `register`, for a function that says whether an answer is right: 1 or 0, and 0 for a truncated sample."""

    def add(function: Callable[..., Any]) -> RewardFunction:
        @functools.wraps(function)
        def reward(sample: Sample, **options: Any) -> Any:
            return 0.0 if sample.truncated else function(sample, **options)

        return register(name, lowest=0.0, highest=1.0, **traits)(reward)

    return add


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_entries)


def find(name: str) -> Entry:
    """The reward of a registered name or a "package.module:function".

    Raises:
      ValueError: there is none; names the nearest.
    """
    if ":" not in name:
        if name in _entries:
            return _entries[name]
        known = f'{", ".join(names())} or a "package.module:function"'
        raise ValueError(f'reward: expected one of {known}, found "{name}"{_nearest(name, _entries)}')
    module_name, _, path = name.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f'reward: "{name}": module {module_name} cannot be imported: {error!r}') from error
    for part in path.split("."):
        if not hasattr(target, part):
            functions = [key for key in dir(target) if callable(getattr(target, key, None))]
            raise ValueError(f'reward: "{name}": {module_name} has no {part or "name"}{_nearest(part, functions)}')
        target = getattr(target, part)
    if not callable(target):
        raise ValueError(f'reward: "{name}": expected a function, found {type(target).__name__}')
    registered = next((entry for entry in _entries.values() if entry.function is target), None)
    return registered or Entry(target, name, name)


@dataclasses.dataclass(frozen=True)
class Reward:
    """Which reward, with which options.

    Attributes:
      name: as `find` takes it.
      options: keyword arguments of the function.
      seconds: how long it may take for one sample; by default what it was registered with, else 10.
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None

    @classmethod
    def of(cls, reward: AnyReward) -> Reward:
        """From a name, from {"name": …, "seconds": …, **options} as a config has it, or itself."""
        if isinstance(reward, Reward):
            return reward
        if isinstance(reward, str):
            return cls(reward)
        if "name" not in (options := dict(reward)):
            raise ValueError(f'reward: expected a "name" among its keys, found {", ".join(options) or "none"}')
        return cls(options.pop("name"), seconds=options.pop("seconds", None), options=options)

    @property
    def label(self) -> str:
        """Its name, with that of the reward it wraps: "audio(maths)"."""
        return self.name if (inner := self.wrapped) is None else f"{self.name}({inner.label})"

    @property
    def wrapped(self) -> Reward | None:
        option = find(self.name).wraps
        return Reward.of(self.options[option]) if option is not None and option in self.options else None


AnyReward = str | Reward | Mapping[str, Any]
"""What `Reward.of` takes."""


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A reward that was found and checked, with all that it wraps.

    Attributes:
      reward: by addresses, so that a process that registered nothing finds it.
      function: (sample) → float, which raises GarbageError for what is no value.
      seconds: how long it may take for one sample.
    """

    reward: Reward
    function: Callable[[Sample], float]
    cheap: bool
    seconds: float


def resolve(reward: AnyReward, *, allow_code: bool = False) -> Resolved:
    """Finds a reward and builds its function.

    Raises:
      ValueError: an unknown name, options that the function does not take or lacks, a time limit that is none, or a
        reward that runs what the model wrote where that is not allowed.
    """
    reward = Reward.of(reward)
    entry, options, addressed = find(reward.name), dict(reward.options), dict(reward.options)
    seconds = entry.seconds if reward.seconds is None else reward.seconds
    if not 0 < seconds < math.inf:
        raise ValueError(f'reward "{reward.name}": seconds: expected more than 0, found {seconds}')
    cheap = entry.cheap
    if entry.runs_code:
        if not allow_code:
            raise ValueError(
                f'reward "{reward.name}": runs programs that the model wrote, which is off unless the operator allows '
                "it: expected allow_code=True (RewardRunner), found False"
            )
        options["allow_code"] = True
    if (inner := reward.wrapped) is not None:
        built = resolve(inner, allow_code=allow_code)
        assert entry.wraps is not None
        options[entry.wraps], addressed[entry.wraps] = built.function, built.reward
        cheap, seconds = cheap and built.cheap, seconds if reward.seconds is not None else max(seconds, built.seconds)
    try:
        inspect.signature(entry.function).bind(None, **options)
    except TypeError as error:
        raise ValueError(f'reward "{reward.name}": options: {error}') from None

    if not cheap and entry.address.startswith("__main__:"):
        raise ValueError(
            f'reward "{reward.name}": is defined in the program itself, which worker processes do not run; expected it '
            "in a module that they can import"
        )

    def function(sample: Sample) -> float:
        return checked(entry.function(sample, **options), entry)

    return Resolved(Reward(entry.address, addressed, reward.seconds), function, cheap, seconds)


def checked(value: Any, entry: Entry) -> float:
    """The value as a float that is finite in float32 too and within the entry's bounds; else raises GarbageError."""
    try:
        number = float(value) if hasattr(value, "__float__") else math.nan  # a str has none
        struct.pack("<f", number)  # raises where a float32 would be infinite
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and entry.lowest <= number <= entry.highest):
        bounds = "" if math.inf == entry.highest == -entry.lowest else f" from {entry.lowest} to {entry.highest}"
        found = value if isinstance(value, float) else f"{reprlib.repr(value)} ({type(value).__name__})"
        raise GarbageError(f"{entry.name}: expected a finite number{bounds}, found {found}")
    return number


def outcome(function: Callable[[Sample], float], sample: Sample, errors: type[BaseException] = Exception) -> Scored:
    """What a resolved reward makes of a sample, its exceptions of type `errors` and what it notes included."""
    token = _noted.set(set())
    try:
        value = function(sample)
        return Scored(value, notes=tuple(sorted(_noted.get() or ())))
    except GarbageError as error:
        return Scored(None, f"garbage: {error}")
    except errors as error:
        return Scored(None, f"raised: {describe(error)}")
    finally:
        _noted.reset(token)


def note(what: str) -> None:
    """For a reward: something to be counted, of NOTES, about the sample that is being scored."""
    if (noted := _noted.get()) is not None:
        noted.add(what)


def describe(error: BaseException) -> str:
    """Type and message, the latter cut off and all of it text that any encoding has."""
    try:
        message = str(error)[:LONGEST_MESSAGE]
    except Exception:
        message = "its message cannot be made"
    return f"{type(error).__name__}: {message}".encode("utf-8", "backslashreplace").decode()


def spread(one_or_many: T | Sequence[T], n: int, what: str) -> Sequence[T]:
    """One for all n, or a sequence of n. Raises ValueError for any other number."""
    if isinstance(one_or_many, str | Mapping) or not isinstance(one_or_many, Sequence):
        return [one_or_many] * n  # pyright: ignore[reportReturnType]  # a str is a sequence too
    if len(one_or_many) != n:
        raise ValueError(f"{what}: expected one for all or one for each of {n} samples, found {len(one_or_many)}")
    return one_or_many


def _address(function: RewardFunction) -> str:
    path = getattr(function, "__qualname__", "<unnamed>")
    if "<" in path:
        raise ValueError(f"reward: expected a function of a module, found {path}, which no import reaches")
    return f"{function.__module__}:{path}"


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f'; did you mean "{near[0]}"?' if near else ""
