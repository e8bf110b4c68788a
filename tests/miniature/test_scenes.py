"""Scenes are what they say: pitch, glide, tempo, level and silence measured from the sound itself."""

import numpy as np
import pytest

from stepaudio_jax.miniature import scenes
from stepaudio_jax.miniature.scenes import SAMPLE_RATE, Event, Scene, arrange, random_event, render


def piece(scene: Scene, event: Event) -> np.ndarray:
    """The event's own stretch of sound, without its fades."""
    start, stop = ((event.start + t) * SAMPLE_RATE for t in (0.02, event.seconds - 0.02))
    return render(scene)[round(start) : round(stop)]


def alone(seed: int, kind: str, **fixed) -> tuple[Scene, Event]:
    rng = np.random.default_rng(seed)
    scene = arrange(rng, [random_event(rng, kind, **fixed)])
    return scene, scene.events[0]


def peak_hz(wave: np.ndarray, low: float = 50, high: float = 4000) -> float:
    padded = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 16))
    hz = np.fft.rfftfreq(1 << 16, 1 / SAMPLE_RATE)
    padded[(hz < low) | (hz > high)] = 0
    return float(hz[padded.argmax()])


def rms_db(wave: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(wave, dtype=np.float64)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pitch", scenes.PITCHES)
def test_a_tone_has_its_pitch(seed, pitch):
    scene, event = alone(seed, "tone", pitch=pitch, trait="pure")
    low, high = scenes.PITCHES[pitch]
    assert low <= event.hz <= high
    assert peak_hz(piece(scene, event)) == pytest.approx(event.hz, rel=0.01)


@pytest.mark.parametrize("pitch", scenes.PITCHES)
def test_timbres_differ_in_their_harmonics(pitch):
    shares = {}
    for timbre in scenes.TIMBRES:
        scene, event = alone(1, "tone", pitch=pitch, trait=timbre, loudness="loud")
        wave = piece(scene, event)
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 16)) ** 2
        hz = np.fft.rfftfreq(1 << 16, 1 / SAMPLE_RATE)
        power = [spectrum[np.abs(hz - k * event.hz) < 30].sum() for k in (1, 2, 3)]
        shares[timbre] = [p / sum(power) for p in power]
    assert shares["pure"][0] > 0.99
    assert shares["hollow"][1] < 0.01 < 0.05 < shares["hollow"][2]
    assert min(shares["bright"]) > 0.1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("direction", scenes.DIRECTIONS)
def test_a_chirp_glides_two_octaves_its_way(seed, direction):
    scene, event = alone(seed, "chirp", trait=direction)
    wave = piece(scene, event)
    edge = len(wave) // 8
    first, last = peak_hz(wave[:edge]), peak_hz(wave[-edge:])
    assert (last > 2 * first) if direction == "rising" else (first > 2 * last)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tempo", scenes.TEMPOS)
def test_a_click_train_has_its_tempo(seed, tempo):
    scene, event = alone(seed, "click train", trait=tempo, loudness="loud")
    start, stop = (round((event.start + t) * SAMPLE_RATE) for t in (0, event.seconds))
    wave = np.abs(render(scene)[start:stop])
    onsets = np.flatnonzero(wave > 0.4 * wave.max())
    clicks = onsets[np.diff(onsets, prepend=-10_000) > 0.03 * SAMPLE_RATE]
    assert SAMPLE_RATE / np.diff(clicks).mean() == pytest.approx(event.hz, rel=0.05)


@pytest.mark.parametrize("vowel", scenes.VOWELS)
def test_a_vowel_is_strong_at_its_formants(vowel):
    scene, event = alone(2, "vowel", trait=vowel, loudness="loud")
    first, second, _ = scenes.VOWELS[vowel]
    wave = piece(scene, event)
    assert abs(peak_hz(wave) - first) < event.hz
    assert abs(peak_hz(wave, low=(first + second) / 2) - second) < 1.5 * event.hz


@pytest.mark.parametrize("kind", [kind for kind in scenes.KINDS if kind != "click train"])
def test_levels(kind):
    for seed in range(5):
        for loudness, (low, high) in scenes.LOUDNESS.items():
            scene, event = alone(seed, kind, loudness=loudness)
            assert low - 2 <= rms_db(piece(scene, event)) <= high + 2


def test_loud_clicks_are_ten_times_soft_ones():
    levels = {loudness: [] for loudness in scenes.LOUDNESS}
    for seed in range(8):
        for loudness in levels:
            scene, event = alone(seed, "click train", loudness=loudness)
            levels[loudness].append(20 * np.log10(np.abs(piece(scene, event)).max()))
    assert min(levels["loud"]) > max(levels["soft"]) + 6


def test_scenes_are_ordered_bounded_and_quiet_between_events():
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = arrange(rng, [random_event(rng) for _ in range(int(rng.integers(1, scenes.MAX_EVENTS + 1)))])
        sound = render(scene)
        assert len(sound) == round(scene.seconds * SAMPLE_RATE) and scene.seconds <= scenes.MAX_SECONDS + 1e-6
        assert sound.dtype == np.float32 and np.isfinite(sound).all() and np.abs(sound).max() < 1
        assert len(scene.silences) == len(scene.events) + 1
        for start, stop in scene.silences:
            assert stop - start > 0.05
            inside = sound[round((start + 0.01) * SAMPLE_RATE) : round((stop - 0.01) * SAMPLE_RATE)]
            assert rms_db(inside) < -44


def test_the_longest_events_still_fit():
    """Five click trains, the longest kind, are where the limit of a scene's length binds."""
    rng = np.random.default_rng(0)
    most = max(duration_of_five(rng) for _ in range(100))
    assert most == pytest.approx(scenes.MAX_SECONDS, abs=1e-6)


def duration_of_five(rng: np.random.Generator) -> float:
    scene = arrange(rng, [random_event(rng, "click train") for _ in range(5)])
    assert scene.seconds <= scenes.MAX_SECONDS + 1e-6
    assert min(stop - start for start, stop in scene.silences) > scenes.SHORTEST_SILENCE
    return scene.seconds


def test_events_that_do_not_fit_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="8 that sound for"):
        arrange(rng, [random_event(rng, "click train") for _ in range(8)])


@pytest.mark.parametrize(
    ("kind", "fixed", "message"),
    [
        ("bell", {}, "expected one of tone"),
        ("tone", {"trait": "rising"}, "trait of a tone: 'rising', expected pure, bright, hollow"),
        ("chirp", {"pitch": "high"}, "pitch of a chirp"),
        ("tone", {"timbre": "pure"}, "timbre of a tone"),
    ],
)
def test_words_an_event_cannot_have_are_refused(kind, fixed, message):
    with pytest.raises(ValueError, match=message):
        random_event(np.random.default_rng(0), kind, **fixed)


def test_loudness_is_one_threshold_for_every_kind():
    """The loudest 25 ms of an event, what a log-mel frame sees, tells loud from soft whatever the kind."""
    loudest = {loudness: [] for loudness in scenes.LOUDNESS}
    for seed in range(20):
        for kind in scenes.KINDS:
            for loudness in loudest:
                scene, event = alone(seed, kind, loudness=loudness)
                wave = piece(scene, event)
                frames = wave[: len(wave) // 400 * 400].reshape(-1, 400)
                loudest[loudness].append(max(rms_db(frame) for frame in frames))
    assert min(loudest["loud"]) > max(loudest["soft"]) + 5


def test_a_scene_always_sounds_the_same():
    rng = np.random.default_rng(0)
    scene = arrange(rng, [random_event(rng) for _ in range(5)])
    np.testing.assert_array_equal(render(scene), render(scene))


def test_descriptions_are_told_apart():
    rng = np.random.default_rng(0)
    seen = {random_event(rng).description for _ in range(3000)}
    assert len(seen) == 2 * (2 * 3 + 2 + 1 + 2 + 3)
    assert {"loud low pure tone", "soft falling chirp", "loud noise burst", "soft fast click train"} <= seen
