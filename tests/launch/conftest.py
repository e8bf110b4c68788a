"""A clone with a space in its name, a fake gcloud on the PATH, and the scripts run from there."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh") if path.name not in ("lib.sh", "tpu.sh"))

# Stands for tools/setup_venv.sh and the program it installs: that one notes its arguments and then runs $FAKE/program.
SETUP = """set -eu
if [ -e "$HOME/broken" ]; then echo "no wheel for this machine"; exit 1; fi
mkdir -p "$1/bin"
cat >"$1/bin/stepaudio" <<'END'
#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done >"$HOME/arguments"
basename "$HOME" >>"$FAKE/starts"
. "$FAKE/program"
END
chmod +x "$1/bin/stepaudio"
"""


def until(true, seconds=600.0):
    """Waits for something that happens in another process."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # where there is one, the dead that nobody asked about are told apart
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def children(pid: int) -> dict[int, str]:
    """Number and name of a process's children; a bare container has no ps."""
    if Path("/proc/self/stat").exists():
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                before, after = path.read_text().rsplit(")", 1)
                if int(after.split()[1]) == pid:
                    found[int(path.parent.name)] = before.split("(", 1)[1]
        return found
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    return {int(row[0]): Path(row[2]).name for row in rows if int(row[1]) == pid}


def write_program(folder: Path, name: str, body: str):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


class Cloud:
    def __init__(self, folder: Path, shared: Path):
        self.folder, self.repo, self.commit = folder / "fake", shared / "my repo", ""
        for name in ("answers", "state", "homes"):
            (self.folder / name).mkdir(parents=True)
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.env = {
            "PATH": f"{self.programs}:{shared}/bin:{os.environ['PATH']}",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "FAKE": str(self.folder),
            **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def program(self, name: str, body: str):
        write_program(self.programs, name, body)

    def own_repo(self):
        """For a test that changes it."""
        repo = self.folder.parent / "my repo"
        self.repo = shutil.copytree(self.repo, repo, symlinks=True)
        self.git("status", "--porcelain")  # so that git has seen the copied files

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=self.repo, env=self.env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def change(self, name: str) -> str:
        """Commits a new file; returns the commit."""
        path = self.repo / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        self.git("add", ".")
        self.git("commit", "--quiet", "--message=m")
        return self.git("rev-parse", "HEAD")

    def workers(self, number: int):
        """From now on every node has so many workers, on which the commands really run."""
        (self.folder / "workers").write_text(str(number))
        (self.folder / "program").write_text("exit 0\n")

    def answer(self, match: str, stdout="", stderr="", code=0, hangs=False, **states: str):
        number = len(list((self.folder / "answers").iterdir()))
        answer = {"match": match, "stdout": stdout, "stderr": stderr, "code": code, "hangs": hangs, "states": states}
        (self.folder / "answers" / f"{number:03}.json").write_text(json.dumps(answer))

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def start(self, script: str, *words: str, **kind) -> subprocess.Popen:
        command = [str(self.repo / "launch" / script), *words]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kind
        return subprocess.Popen(command, env=self.env, text=True, start_new_session=True, **pipes)

    def run(self, script: str, *words: str, typed: str | None = None) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        process = self.start(script, *words, **({} if typed is None else {"stdin": subprocess.PIPE}))
        out, err = process.communicate(typed, timeout=600)
        return process.returncode, out, err

    def hanging(self) -> list[int]:
        """The calls that hang, and what stands for the ssh of each."""
        return [int(pid) for path in self.folder.glob("hanging-*") for pid in path.name.split("-")[1:]]

    def starts(self, host: str) -> int:
        """How often the program was started on a worker, also on those that are gone."""
        path = self.folder / "starts"
        return path.read_text().split().count(host) if path.exists() else 0

    def kill_jobs(self):
        """Supervisors and programs, each of which leads a process group."""
        for path in self.folder.glob("homes/*/stepaudio/run/pid"):
            supervisor = int(path.read_text())
            for pid in (supervisor, *children(supervisor)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """The repository and the programs on the PATH, made once."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "bin").mkdir()
    fake = Path(__file__).with_name("fake_gcloud.py")
    for name, body in {
        "gcloud": f'exec "{sys.executable}" -I -S "{fake}" "$@"',
        "kubectl": 'printf "%s\\n" "$@" >"$FAKE/kubectl"; cat >"$FAKE/manifest"',
        "hostname": 'echo "${FAKE_HOST:-here}"',
        "python3": f'exec "{sys.executable}" "$@"',
    }.items():
        write_program(folder / "bin", name, body)
    cloud = Cloud(folder / "maker", folder)
    shutil.copytree(LAUNCH, cloud.repo / "launch")
    (cloud.repo / "tools").mkdir()
    (cloud.repo / "tools" / "setup_venv.sh").write_text(SETUP)
    cloud.git("init", "--quiet", "--template=")
    return folder, cloud.change("configs/a b.py")


@pytest.fixture
def cloud(tmp_path, shared):
    folder, commit = shared
    cloud = Cloud(tmp_path, folder)
    cloud.commit = commit
    yield cloud
    cloud.kill_jobs()
    for pid in cloud.hanging():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
