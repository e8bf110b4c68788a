"""Slices as people write them, and those that do not exist."""

import math

import pytest

from stepaudio_jax.parallel.chips import CHIPS, TopologyError, parse_topology, shapes


@pytest.mark.parametrize(
    ("text", "chips", "devices"),
    [("v5p:4x4x4", 64, 64), ("v6e:16x16", 256, 256), ("tpu7x:4x4x4", 64, 128), ("v5e-32", 32, 32), ("v4:2x2x1", 4, 8)],
)
def test_slices(text, chips, devices):
    topology = parse_topology(text)
    assert (topology.chips, topology.devices) == (chips, devices)
    assert parse_topology(topology.name) == topology
    assert parse_topology(text, 2).chips == 2 * chips


def test_every_slice_reads_back():
    for chip in CHIPS.values():
        for shape in shapes(chip):
            name = f"{chip.name}:{'x'.join(map(str, shape))}"
            assert parse_topology(name).shape == shape and math.prod(shape) <= chip.most
    assert parse_topology("v5p-64").name == "v5p:4x4x4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5q:4x4x4", r"unknown chip 'v5q'; did you mean v5[pe]\?"),
        ("h100:8", "unknown chip 'h100'; known are v4:4x4x4, v5e:4x4"),
        ("v5p:4x4", "v5p is a 3-D torus; try v5p:2x2x4"),
        ("v6e:16x32", "no such slice of v6e; the nearest is v6e:16x16"),
        ("v5p:4x4x5", "multiples of 4 in growing order.*the nearest is v5p:4x4x4"),
        ("v5p:8x4x4", "the nearest is v5p:4x4x8"),
        ("v6e-250", "no such slice; the nearest is v6e:16x16"),
        ("v6e:big", "expected v6e:4x4 or v6e-64"),
        ("", "unknown chip ''"),
    ],
)
def test_slices_that_do_not_exist(text, message):
    with pytest.raises(TopologyError, match=message):
        parse_topology(text)
    with pytest.raises(TopologyError, match="slices: expected at least 1, found 0"):
        parse_topology("v5p:4x4x4", 0)
