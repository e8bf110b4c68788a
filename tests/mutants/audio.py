"""Faults of audio: lengths, chunks, the mel spectrogram."""

from tests.mutants import Mutant

LENGTHS, CHUNKS, MEL, ROWS = (f"stepaudio_jax/audio/{name}.py" for name in ("lengths", "chunks", "mel", "rows"))
OF_LENGTHS, OF_CHUNKS, OF_MEL, OF_ROWS = (
    f"tests/audio/test_{name}.py" for name in ("lengths", "chunks", "mel", "rows")
)

MUTANTS = (
    Mutant(
        "the hop is 128 samples", LENGTHS, "HOP = 160\n", "HOP = 128\n", (f"{OF_LENGTHS}::test_documented_examples",)
    ),
    Mutant("a chunk lasts 30 s", LENGTHS, "CHUNK_SECONDS = 25\n", "CHUNK_SECONDS = 30\n", (OF_CHUNKS,)),
    Mutant(
        "both rules count all frames",
        LENGTHS,
        '(2 if length_rule == "hf" else 0)',
        "0",
        (f"{OF_LENGTHS}::test_a_quarter_of_all_lengths_differ_between_the_rules",),
        wiring=True,
    ),
    Mutant(
        "audio tokens are rounded down",
        LENGTHS,
        "    return (pooled - 1) // 2 + 1\n",
        "    return pooled // 2\n",
        (f"{OF_LENGTHS}::test_documented_examples",),
    ),
    Mutant(
        "the length rule does not reach the frames",
        LENGTHS,
        "pooled = (counted_frames(samples, length_rule) + 1) // 2 // 2",
        "pooled = (counted_frames(samples) + 1) // 2 // 2",
        (f"{OF_LENGTHS}::test_a_quarter_of_all_lengths_differ_between_the_rules",),
        wiring=True,
    ),
    Mutant(
        "a remainder too short for a token is a chunk",
        CHUNKS,
        "        cuts.pop()\n",
        "        pass\n",
        (f"{OF_CHUNKS}::test_where_it_cuts",),
    ),
    Mutant(
        "the window is symmetric",
        MEL,
        "np.arange(N_FFT) / N_FFT)",
        "np.arange(N_FFT) / (N_FFT - 1))",
        (f"{OF_MEL}::test_any_short_length",),
    ),
    Mutant(
        "the dynamic range is 60 dB", MEL, "1e-8 * loudest", "1e-6 * loudest", (f"{OF_MEL}::test_any_short_length",)
    ),
    Mutant("the log-mel is not scaled", MEL, "logs / 4 + 1", "logs", (f"{OF_MEL}::test_any_short_length",)),
    Mutant(
        "the bands are not normalised",
        MEL,
        " * (2 / (edges[2:] - edges[:-2]))[:, None]",
        "",
        (f"{OF_MEL}::test_filters",),
    ),
    Mutant(
        "the mel scale breaks at 900 Hz",
        MEL,
        "top_linear = 1000 * 3 / 200",
        "top_linear = 900 * 3 / 200",
        (f"{OF_MEL}::test_filters",),
    ),
    Mutant(
        "the loudest band is the row's, not the chunk's",
        MEL,
        "jax.ops.segment_max(mel.max(axis=1), ids, num_segments=len(ids) // rows.UNIT_FRAMES + 2)[ids]",
        "jnp.full(len(mel), mel.max())",
        (f"{OF_ROWS}::test_a_loud_chunk_does_not_raise_the_floor_of_another_in_its_row",),
        wiring=True,
    ),
    Mutant(
        "sound beyond a chunk's end is heard",
        MEL,
        'jnp.where(at < size, samples.at[at].get(mode="clip"), 0)',
        'jnp.where(at < size + 160, samples.at[at].get(mode="clip"), 0)',
        (f"{OF_MEL}::test_padding_is_never_heard",),
    ),
    Mutant(
        "a chunk's reflection is left out",
        ROWS,
        "        row[first - REFLECTED : first] = chunk[REFLECTED:0:-1]\n",
        "        pass\n",
        (f"{OF_ROWS}::test_log_mel_of_each_chunk_is_that_of_the_chunk_alone",),
    ),
    Mutant(
        "a chunk owns no room for a zero behind it",
        ROWS,
        "-(-(lengths.mel_frames(samples) + 2) // UNIT_FRAMES)",
        "-(-lengths.mel_frames(samples) // UNIT_FRAMES)",
        (f"{OF_ROWS}::test_a_chunk_owns_room_for_a_zero_at_every_rate",),
    ),
)
