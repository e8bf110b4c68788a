"""What the first of several processes finds is what all have; and what it fails with ends all."""

from tests import processes

PROGRAM = """
import sys
number, port = int(sys.argv[1]), sys.argv[2]
import jax
jax.config.update("jax_platforms", "cpu")
from stepaudio_jax.parallel import distributed
distributed.start(coordinator=f"127.0.0.1:{port}", processes=2, process=number)
from stepaudio_jax.parallel.first import FirstProcessError, is_first, of_first
assert is_first() == (number == 0)
asked = []
assert of_first(lambda: asked.append(number) or {"x": [1.5, None], "by": number}) == {"x": [1.5, None], "by": 0}
assert asked == ([0] if number == 0 else [])
try:
    of_first(lambda: 1 / 0)
    raise AssertionError("it did not fail")
except ZeroDivisionError:
    print("its own error")
except FirstProcessError as error:
    print(error)
"""


def test_all_have_what_the_first_finds():
    first, second = processes.run(PROGRAM)
    assert first.endswith("its own error\n") and "FirstProcessError" not in first and "ZeroDivisionError" in second
