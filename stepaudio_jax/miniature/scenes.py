"""Sound scenes made from a seed: short sequences of events over background noise, with everything known.

Levels are decibels relative to full scale (dBFS), times are seconds, frequencies hertz.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from stepaudio_jax.miniature.drawing import pick

SAMPLE_RATE = 16_000
MAX_SECONDS = 4.0
MAX_EVENTS = 5

KINDS = ("tone", "chirp", "noise burst", "click train", "vowel")
LOUDNESS = {"loud": (-20.0, -17.0), "soft": (-34.0, -31.0)}
"""Root-mean-square level of an event, except for clicks, whose peaks stand 12 dB above it."""
PITCHES = {"low": (200.0, 300.0), "high": (700.0, 1000.0)}
TIMBRES = ("pure", "bright", "hollow")
DIRECTIONS = ("rising", "falling")
TEMPOS = {"slow": (5.0, 7.0), "fast": (14.0, 18.0)}
VOWELS = {"ah": (730.0, 1090.0, 2440.0), "ee": (270.0, 2290.0, 3010.0), "oo": (300.0, 870.0, 2240.0)}
"""First three formants of a man's vowels (Peterson and Barney, 1952)."""
TRAITS = {"tone": TIMBRES, "chirp": DIRECTIONS, "click train": TEMPOS, "vowel": VOWELS}
"""What tells events of one kind apart; a noise burst has nothing but its loudness."""

SHORTEST_SILENCE = 0.05
"""Mean length of a scene's silences below which events would run into each other."""

FADE = 0.01
TABLE = 2048


@dataclasses.dataclass(frozen=True)
class Event:
    """One sound. `trait` is what tells it from others of its kind: a tone's timbre, a chirp's direction, a click
    train's tempo, a vowel's name, nothing for a noise burst.

    Attributes:
      loudness: "loud" or "soft"; `level_db` is the level itself.
      pitch: "low" or "high" for a tone, else "".
      hz: a tone's fundamental, a chirp's lower end, a vowel's voice; clicks per second for a click train.
    """

    kind: str
    loudness: str
    trait: str = ""
    pitch: str = ""
    start: float = 0.0
    seconds: float = 0.0
    level_db: float = 0.0
    hz: float = 0.0

    @property
    def description(self) -> str:
        """Its canonical words, as in a reasoning trace: "loud low pure tone"."""
        return " ".join(word for word in (self.loudness, self.pitch, self.trait, self.kind) if word)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Events in order of time, the background's level, and the seed of everything random in the sound."""

    events: tuple[Event, ...]
    seconds: float
    background_db: float
    seed: int

    @property
    def silences(self) -> tuple[tuple[float, float], ...]:
        """(start, end) of the gaps before, between and after the events."""
        edges = [0.0, *(t for e in self.events for t in (e.start, e.start + e.seconds)), self.seconds]
        return tuple(zip(edges[::2], edges[1::2], strict=True))


def random_event(rng: np.random.Generator, kind: str | None = None, **fixed: str) -> Event:
    """An event whose words (kind, loudness, trait, pitch) are drawn unless fixed; its numbers follow from them.

    Raises:
      ValueError: a fixed word is not one that this kind of event can have.
    """
    kind = kind or str(rng.choice(KINDS))
    _check_words(kind, fixed)
    loudness = fixed.get("loudness") or pick(rng, LOUDNESS)
    pitch = (fixed.get("pitch") or pick(rng, PITCHES)) if kind == "tone" else ""
    trait = fixed.get("trait") or pick(rng, TRAITS.get(kind, ("",)))
    spans: dict[str, tuple[float, float] | None] = {
        "tone": PITCHES.get(pitch),
        "chirp": (300.0, 450.0),
        "vowel": (100.0, 150.0),
        "click train": TEMPOS.get(trait),
    }
    low, high = spans.get(kind) or (0.0, 0.0)
    return Event(
        kind,
        loudness,
        trait,
        pitch,
        seconds=rng.uniform(0.5, 0.6) if kind == "click train" else rng.uniform(0.25, 0.5),
        level_db=rng.uniform(LOUDNESS[loudness][0], LOUDNESS[loudness][1]),
        hz=rng.uniform(low, high),
    )


def arrange(rng: np.random.Generator, events: list[Event]) -> Scene:
    """Puts events one after another with silence before, between and after them, within MAX_SECONDS.

    Raises:
      ValueError: the events are too long to fit with silence between them.
    """
    gaps = rng.uniform(0.12, 0.3, len(events) + 1)
    sounding = sum(event.seconds for event in events)
    if MAX_SECONDS - sounding < SHORTEST_SILENCE * len(gaps):
        raise ValueError(
            f"events: {len(events)} that sound for {sounding:.2f} s in all leave no silence between them "
            f"in a scene of at most {MAX_SECONDS} s"
        )
    squeeze = min(1.0, (MAX_SECONDS - sounding) / gaps.sum())
    placed, at = [], 0.0
    for event, gap in zip(events, gaps[:-1] * squeeze, strict=True):
        at += gap
        placed.append(dataclasses.replace(event, start=at))
        at += event.seconds
    return Scene(tuple(placed), at + gaps[-1] * squeeze, rng.uniform(-60.0, -48.0), int(rng.integers(2**31)))


def render(scene: Scene) -> np.ndarray:
    """The scene's sound: float32 [samples] at 16 kHz, within ±1."""
    rng = np.random.default_rng(scene.seed)
    size = round(scene.seconds * SAMPLE_RATE)
    sound = rng.standard_normal(size, np.float32) * np.float32(10 ** (scene.background_db / 20))
    for event in scene.events:
        wave = _WAVES[event.kind](event, rng)
        fade = int(FADE * SAMPLE_RATE)
        wave[:fade] *= _fade()
        wave[-fade:] *= _fade()[::-1]
        start = round(event.start * SAMPLE_RATE)
        sound[start : start + len(wave)] += wave[: size - start]
    return np.clip(sound, -0.999, 0.999)


def _tone(event: Event, rng: np.random.Generator) -> np.ndarray:
    return _periodic(_timbre_table(event.trait), np.full(_size(event), event.hz, np.float32), event, rng)


def _chirp(event: Event, rng: np.random.Generator) -> np.ndarray:
    octaves = np.linspace(0, 2, _size(event), dtype=np.float32)
    return _periodic(
        _timbre_table("pure"), event.hz * 2 ** (octaves if event.trait == "rising" else octaves[::-1]), event, rng
    )


def _noise(event: Event, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(_size(event), np.float32) * np.float32(10 ** (event.level_db / 20))


def _clicks(event: Event, rng: np.random.Generator) -> np.ndarray:
    wave = np.zeros(_size(event), np.float32)
    peak = 10 ** ((event.level_db + 12) / 20)
    starts = np.arange(FADE, event.seconds - 0.02, 1 / event.hz) * SAMPLE_RATE
    for start in starts.astype(int):
        wave[start : start + len(_click())] += peak * _click()[: len(wave) - start]
    return wave


def _vowel(event: Event, rng: np.random.Generator) -> np.ndarray:
    # A voice glides a little: 3 % down over the vowel.
    glide = np.linspace(1.015, 0.985, _size(event), dtype=np.float32)
    return _periodic(_vowel_table(event.trait, round(event.hz, -1)), event.hz * glide, event, rng)


_WAVES = {"tone": _tone, "chirp": _chirp, "noise burst": _noise, "click train": _clicks, "vowel": _vowel}


def _size(event: Event) -> int:
    return round(event.seconds * SAMPLE_RATE)


def _periodic(table: np.ndarray, hz: np.ndarray, event: Event, rng: np.random.Generator) -> np.ndarray:
    """Runs through a one-cycle table of unit power at the given frequencies, at the event's level."""
    phase = np.cumsum(hz / SAMPLE_RATE, dtype=np.float64) + rng.random()
    cycle = table[((phase % 1.0) * TABLE).astype(np.int32)]
    return cycle * np.float32(10 ** (event.level_db / 20))


@functools.cache
def _timbre_table(timbre: str) -> np.ndarray:
    """pure is a sine; bright has seven harmonics falling slowly, hollow odd ones falling as 1/k."""
    harmonics = {
        "pure": {1: 1.0},
        "bright": {k: 1 / k**0.5 for k in range(1, 8)},
        "hollow": {k: 1 / k for k in range(1, 8, 2)},
    }[timbre]
    return _table(harmonics)


@functools.cache
def _vowel_table(vowel: str, voice: float) -> np.ndarray:
    """Harmonics of the voice, each as strong as three formant resonances (80 to 160 Hz wide) let it be."""
    harmonics = {}
    for k in range(1, int(3600 / voice)):
        gains = (
            gain / (1 + ((k * voice - formant) / (60 + 0.03 * formant)) ** 2)
            for formant, gain in zip(VOWELS[vowel], (1.0, 0.6, 0.3), strict=True)
        )
        harmonics[k] = sum(gains) + 0.01
    return _table(harmonics)


def _table(harmonics: dict[int, float]) -> np.ndarray:
    turn = 2 * np.pi * np.arange(TABLE) / TABLE
    wave = sum(gain * np.sin(k * turn + k * k) for k, gain in harmonics.items())  # k² spreads the peaks
    return (wave / np.sqrt(np.mean(np.square(wave)))).astype(np.float32)


@functools.cache
def _click() -> np.ndarray:
    time = np.arange(int(0.012 * SAMPLE_RATE)) / SAMPLE_RATE
    return (np.sin(2 * np.pi * 2000 * time) * np.exp(-time / 0.003)).astype(np.float32)


@functools.cache
def _fade() -> np.ndarray:
    ramp = np.arange(int(FADE * SAMPLE_RATE)) / (FADE * SAMPLE_RATE)
    return (0.5 - 0.5 * np.cos(np.pi * ramp)).astype(np.float32)


def _check_words(kind: str, fixed: dict[str, str]) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r}, expected one of {', '.join(KINDS)}")
    known = {"loudness": LOUDNESS, "pitch": PITCHES if kind == "tone" else (), "trait": TRAITS.get(kind, ())}
    for name, word in fixed.items():
        if word not in known.get(name, ()):
            expected = ", ".join(known.get(name, ())) or "nothing: this kind has none"
            raise ValueError(f"{name} of a {kind}: {word!r}, expected {expected}")
