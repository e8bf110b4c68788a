"""What stands in for gcloud: writes down its arguments, answers as told, and plays a small cloud.

Run as a program, with $FAKE a folder: calls (one JSON list a line), answers/ (one JSON file each, used once, in
order, by the first call whose arguments contain its "match"), state/NAME, and homes/NODE-WORKER, the home
folders of the workers, where the commands given to ssh really run.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

FAKE = Path(os.environ["FAKE"])


def main(argv: list[str]) -> int:
    with open(FAKE / "calls", "a") as calls:
        calls.write(json.dumps(argv) + "\n")
    for path in sorted((FAKE / "answers").glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # a call at the same time took it
            answer = json.loads(path.read_text())
            if answer["match"] in " ".join(argv):
                path.rename(path.with_suffix(".used"))
                return give(answer)
    return play(argv) if (FAKE / "workers").exists() else 0


def give(answer: dict) -> int:
    sys.stdout.write(answer["stdout"])
    sys.stderr.write(answer["stderr"])
    for name, state in answer["states"].items():  # what becomes of the TPU at this moment
        (FAKE / "state" / name).write_text(state)
    if answer["hangs"]:
        ssh = subprocess.Popen(["tail", "-f", "/dev/null"], stdin=subprocess.DEVNULL)
        (FAKE / f"hanging-{os.getpid()}-{ssh.pid}").touch()
        signal.pause()
    return answer["code"]


def play(argv: list[str]) -> int:
    kind, verb, *words = argv[2:]
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    workers = int((FAKE / "workers").read_text())
    if verb in ("scp", "ssh") and gone():
        sys.stderr.write("ERROR: this TPU is in a terminal state and cannot be used\n")
        return 1
    if verb == "scp":
        source, (node, target) = words[0], words[1].split(":")
        for worker in range(workers):
            shutil.copy(source, home(node, worker) / target)
        return 0
    name = words[0]
    state = FAKE / "state" / name
    if verb == "create":
        state.write_text("READY" if kind == "tpu-vm" else "ACTIVE")
    elif verb == "delete":
        state.unlink()
        for folder in (FAKE / "homes").glob(f"{name}-*"):
            shutil.rmtree(folder)
    elif verb == "describe":
        if not state.exists():
            sys.stderr.write(f"ERROR: (gcloud.compute.tpus.{kind}.describe) NOT_FOUND: '{name}' was not found\n")
            return 1
        print(state.read_text())
    elif verb == "ssh":
        chosen = range(workers) if flags["worker"] == "all" else [int(flags["worker"])]
        return max(ssh(name, worker, flags["command"], workers) for worker in chosen)
    return 0


def gone() -> bool:
    return any(path.read_text() not in ("READY", "ACTIVE") for path in (FAKE / "state").iterdir())


def home(node: str, worker: int) -> Path:
    folder = FAKE / "homes" / f"{node}-{worker}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def ssh(node: str, worker: int, command: str, workers: int) -> int:
    sys.stderr.write(f"SSH: Attempting to connect to worker {worker}...\n")
    sys.stderr.flush()
    folder = home(node, worker)
    env = {**os.environ, "HOME": str(folder), "FAKE_HOST": folder.name}
    code = subprocess.run(["bash", "-c", command], env=env, cwd=folder, stdin=subprocess.DEVNULL).returncode
    if code and workers > 1:
        sys.stderr.write(f"##### Command execution on worker {worker} failed with exit status {code}. Continuing.\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
