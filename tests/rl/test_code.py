"""The code reward: right programs pass, wrong ones and clever ones do not, and none gets out of its confinement."""

import os
import time
from pathlib import Path

import pytest

from stepaudio_jax.rl.rewards import RewardRunner, Sample, SandboxError, Scored, sandbox
from stepaudio_jax.rl.rewards.code import code, extract, read_tests
from stepaudio_jax.rl.rewards.sandbox import Limits, run

pytestmark = pytest.mark.usefixtures("needs_a_sandbox")


def judge(answer: str, truth, **options) -> float:
    return code(Sample("", answer, True, False, truth), allow_code=True, **options)


DOUBLE = [{"stdin": "3\n", "stdout": "6\n"}, {"stdin": "-1", "stdout": "-2"}]
DATACLASS = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int"
ADD = ["assert add(1, 2) == 3", "assert add('ü', 'x') == 'üx'\nassert add((1,), (2,)) == (1, 2)"]


@pytest.mark.parametrize(
    "answer, truth, right",
    [
        ("print(2 * int(input()))", DOUBLE, 1),
        ("Here it is:\n```python\nprint(2 * int(input()))\n```\nDone.", DOUBLE, 1),
        ("```\nprint(0)\n```\nNo, rather\n```py\nprint(2 * int(input()), '')\n```", DOUBLE, 1),
        ("print(6)", DOUBLE, 0),
        ("print(2 * int(input())); 1 / 0", DOUBLE, 0),
        ("print(2 * int(input())", DOUBLE, 0),
        ("", DOUBLE, 0),
        ("\ud800", DOUBLE, 0),
        ("print(2 * int(input()))", {"inputs": ["3", "4"], "outputs": ["6", "8"]}, 1),
        ("def add(a, b):\n    print('noise')\n    return a + b", ADD, 1),
        ("def add(a, b):\n    return a", ADD, 0),
        ("def add(a, b):\n    return a + b", [{"call": "add([1], [2])", "result": [1, 2]}], 1),
        ("def add(a, b):\n    return (a, b)", {"call": "add(1, 2)", "result": [1, 2]}, 1),  # JSON has no tuples
        ("def empty():\n    pass", "assert empty() is None", 1),
        (DATACLASS, "assert A(1).x == 1", 1),
        ("if __name__ == '__main__':\n    print(input()[::-1])", [{"stdin": "你好", "stdout": "好你"}], 1),
        # those that would end the test, or bend it
        ("import os\ndef add(a, b):\n    os._exit(0)", ADD, 0),
        ("raise SystemExit(0)", ADD, 0),
        ("class Any:\n    def __eq__(self, other): return True\ndef add(a, b):\n    return Any()", ADD, 0),
        ("class Any:\n    def __repr__(self): return '((' * 10_000\ndef add(a, b):\n    return Any()", ADD, 0),
        ("import builtins\nbuiltins.repr = lambda value: '3'\ndef add(a, b):\n    return 3", ADD, 0),
        ("def add(a, b):\n    return 'x' * 100_000_000", ADD, 0),
        ("while True: print('x' * 1000)", DOUBLE, 0),
        ("import ctypes\nctypes.string_at(0)", DOUBLE, 0),
    ],
)  # fmt: skip
def test_programs(answer, truth, right):
    assert judge(answer, truth) == right


@pytest.mark.parametrize(
    "truth",
    [
        "",
        [],
        None,
        7,
        "assert add(1, 2)",
        "assert add(1) == f(2)",
        "assert add(1) > 2",
        "add(1)",
        [{"stdin": "x"}],
        [3],
    ],
)
def test_a_truth_without_tests_is_an_error(truth):
    with pytest.raises(ValueError, match="truth: expected"):
        judge("x = 1", truth)


def test_it_is_off_unless_allowed():
    with pytest.raises(ValueError, match="expected allow_code=True, found False"):
        code(Sample("", "print(6)", True, False, DOUBLE))
    with pytest.raises(ValueError, match="program_seconds: expected more than 0, at most 20, found 60"):
        judge("print(6)", DOUBLE, program_seconds=60)


def test_it_runs_through_the_runner():
    samples = [
        Sample("", answer, True, False, DOUBLE) for answer in ("print(2 * int(input()))", "while True: pass", "")
    ]
    reward = {"name": "code", "program_seconds": 0.5}
    with RewardRunner(workers=2, allow_code=True) as runner:
        assert runner.score(samples, reward) == [Scored(1.0), Scored(0.0), Scored(0.0)]
        bad = [Sample("", "x = 1", True, False, None), Sample("", "print(6)", True, True, DOUBLE)]
        assert [each.kind for each in runner.score(bad, reward)] == ["raised", None]
    with RewardRunner() as runner, pytest.raises(ValueError, match="runs programs that the model wrote, which is off"):
        runner.score(samples, reward)


def test_the_last_fenced_block():
    assert extract("no fence") == "no fence"
    assert extract("```py\na\n```\ntext `b`\n```\nc\n```\n") == "c\n"


def test_tests_of_every_form():
    assert [test.call for test in read_tests(ADD)] == ["add(1, 2)", "add('ü', 'x')", "add((1,), (2,))"]
    assert read_tests(ADD)[2].result == (1, 2)


# The sandbox

GUARDED = "import os\ntry:\n    got = {}\n    print('DONE', got)\nexcept (OSError, RuntimeError):\n    print('refused')"
ATTEMPTS = [
    "open('{folder}/written', 'w')",
    "open('{folder}/kept').read()",
    "open('{folder}/kept', 'a')",
    "os.open('{folder}/kept', os.O_TRUNC)",
    "os.remove('{folder}/kept')",
    "os.rename('{folder}/kept', '{folder}/moved')",
    "os.truncate('{folder}/kept', 0)",
    "os.chmod('{folder}/kept', 0)",
    "os.chown('{folder}/kept', 1, 1)",
    "os.utime('{folder}/kept')",
    "os.link('{folder}/kept', 'kept')",
    "os.symlink('{folder}/kept', 'kept')",
    "os.mkdir('{folder}/made')",
    "os.listdir('{folder}')",
    "open('/etc/passwd').read()",
    "open('/proc/self/environ').read()",
    "open('/proc/{parent}/environ').read()",
    "open('/proc/{parent}/mem', 'rb+')",
    "open('/dev/tty')",
    "os.fork()",
    "os.posix_spawn('/bin/sh', ['sh'], {{}})",
    "os.execv('/bin/sh', ['sh'])",
    "__import__('subprocess').run(['sh'])",
    "__import__('threading').Thread(target=print).start()",
    "__import__('socket').socket()",
    "os.kill({parent}, 9)",
    "os.kill(-1, 9)",
    "__import__('fcntl').fcntl(0, 8, {parent})",
    "__import__('resource').setrlimit(7, (1000, 1000))",
    "os.memfd_create('x')",
    "os.setuid(1)",
    "os.setsid()",
    "os.chroot('.')",
    "os.unshare(0x10000000)" if hasattr(os, "unshare") else "os.setns(0)" if hasattr(os, "setns") else "os.fork()",
]


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_nothing_outside_can_be_reached(attempt, tmp_path):
    tmp_path.chmod(0o777)
    (tmp_path / "kept").write_text("kept")
    ran = run(GUARDED.format(attempt.format(folder=tmp_path, parent=os.getpid())), seconds=60)
    assert ran.output == b"refused\n", ran
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept").read_text() == "kept"


def test_system_calls_by_number_do_not_exist():
    source = "import ctypes\ncall = ctypes.CDLL(None, use_errno=True).syscall\n"
    for number in (56, 57, 58, 59, 41, 62, 101, 161, 165, 272, 298, 321, 322, 425, 435):  # x86-64; others elsewhere
        source += f"call({number}, 0, 0, 0, 0, 0); assert ctypes.get_errno() != 0\n"
    ran = run(source + "print('alive')", seconds=60)
    assert ran.output == b"alive\n" or os.uname().machine != "x86_64"


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    ran = run("import os, sys\nprint(sorted(os.environ), os.listdir('.'), sys.argv)", seconds=60)
    assert ran.output in (b"['LC_CTYPE'] [] ['candidate.py']\n", b"[] [] ['candidate.py']\n")


def test_it_may_use_its_own_folder_and_the_standard_library():
    ran = run(
        "import collections, decimal, hashlib, heapq, json, os, random, re, zlib\n"
        "open('a', 'w').write('x' * 1000)\nos.rename('a', 'b')\nprint(len(open('b').read()))\nos.remove('b')\n"
        "print(hashlib.sha256(b'').hexdigest()[:4], input())",
        seconds=60,
        stdin="grüße",
    )
    assert ran.well and ran.output.decode() == "1000\ne3b0 grüße\n"
    assert not list(Path("/tmp").glob("stepaudio-code-*/b"))


DEAF = """
import signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "source, stopped",
    [
        ("while True: pass", "seconds"),
        ("import time; time.sleep(60)", "seconds"),
        ("import os, time; os.closerange(0, 64); time.sleep(60)", "seconds"),
        (DEAF, "seconds"),
        ("while True: print('x' * 1000)", "output"),
        ("for n in range(9): open(str(n), 'w').write('x' * 200_000)\nimport time; time.sleep(60)", "files"),
        ("n = 0\nwhile True: open(str(n), 'w'); n += 1", "files"),
    ],
)
def test_limits_end_a_program(source, stopped):
    begin = time.monotonic()
    ran = run(source, seconds=0.3)
    assert ran.stopped == stopped and ran.status is None and not ran.well
    assert time.monotonic() - begin < 5 and len(ran.output) <= Limits().output


@pytest.mark.parametrize(
    "source",
    [
        "x = bytearray(1 << 30)",
        "x = []\nwhile True: x.append('x' * 1_000_000)",
        "open('a', 'w').write('x' * (2 << 20))",
        "import os\nwhile True: os.fork()",
        "files = [open('a', 'w') for _ in range(1000)]",
    ],
)
def test_more_than_the_limits_fails(source):
    begin = time.monotonic()
    ran = run(source, seconds=60)
    assert ran.status == 1 and time.monotonic() - begin < 8


@pytest.mark.parametrize(
    "launcher, complaint",
    [
        ("import os; os.write(1, b'\\0OSError: no Landlock')", "sandbox: OSError: no Landlock"),
        ("raise SystemExit(1)", "sandbox: ended before it was confined"),
    ],
)
def test_what_cannot_be_confined_is_not_run(launcher, complaint, tmp_path, monkeypatch):
    (tmp_path / "launcher.py").write_text(launcher)
    monkeypatch.setattr(sandbox, "_CONFINED", tmp_path / "launcher.py")
    with pytest.raises(SandboxError, match=complaint):
        judge("print(6)", DOUBLE)
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="system: expected linux, found darwin"):
        run("", seconds=60)
