"""install, run, logs, stop: the exact calls, what arrives on the workers, and workers that fail."""

import shutil

import pytest

VM = ["compute", "tpus", "tpu-vm"]
THERE = ["--zone=us-east5-a", "--project=p", "--quiet"]
PLACE = ("--zone", "us-east5-a", "--project", "p")
IDLE = "if [ -e stepaudio/src/launch/worker.sh ]; then bash stepaudio/src/launch/worker.sh idle; fi"
FRESH = f"set -e; cd; {IDLE}; mkdir -p stepaudio; rm -rf stepaudio/src"
SETUP = "bash stepaudio/src/launch/worker.sh install"


def ssh(node, command, worker="all", there=THERE):
    return [*VM, "ssh", node, f"--worker={worker}", f"--command={command}", *there]


def unpack(archive):
    return f"{FRESH}; mkdir stepaudio/src; tar -xzf {archive} -C stepaudio/src; rm {archive}; {SETUP}"


def test_install_calls(cloud):
    code, _, err = cloud.run("install.sh", "pod", *PLACE)
    archive = f"stepaudio-pod-{cloud.commit}.tar.gz"
    assert code == 0, err
    assert cloud.calls() == [
        [*VM, "scp", f".git/{archive}", f"pod:{archive}", "--worker=all", *THERE],
        ssh("pod", unpack(archive)),
    ]
    assert not (cloud.repo / ".git" / archive).exists()


def test_install_calls_on_slices(cloud):
    assert cloud.run("install.sh", "pod", "--slices", "2", *PLACE)[0] == 0
    archive = f"stepaudio-pod-{cloud.commit}.tar.gz"
    copy, install = cloud.calls()[:2], cloud.calls()[2:]  # each pair at once, in any order
    assert sorted(copy) == [
        [*VM, "scp", f".git/{archive}", f"pod-{n}:{archive}", "--worker=all", *THERE] for n in range(2)
    ]
    assert sorted(install) == [ssh(f"pod-{n}", unpack(archive)) for n in range(2)]


def test_install_pulls(cloud):
    url = "https://example.com/my repo.git"
    assert cloud.run("install.sh", "pod", "--pull", url, "--commit", "abc")[0] == 0
    clone = r"GIT_TERMINAL_PROMPT=0 git clone --quiet https://example.com/my\ repo.git stepaudio/src"
    command = f"{FRESH}; {clone}; git -C stepaudio/src checkout --quiet abc; {SETUP}"
    assert cloud.calls() == [ssh("pod", command, there=["--quiet"])]
    code, _, err = cloud.run("install.sh", "pod", "--pull", url)
    assert code == 2 and "--commit is missing" in err


def test_installed_is_the_commit(cloud):
    cloud.own_repo()
    cloud.workers(2)
    cloud.change("later.py")
    assert cloud.run("install.sh", "pod", "--commit", "HEAD~1")[0] == 0
    for worker in range(2):
        home = cloud.folder / "homes" / f"pod-{worker}"
        assert (home / "stepaudio/src/configs/a b.py").exists()
        assert not (home / "stepaudio/src/later.py").exists()
        assert (home / "stepaudio/venv/bin/stepaudio").exists()
        assert [path.name for path in home.iterdir()] == ["stepaudio"]


def test_uncommitted_changes(cloud):
    cloud.own_repo()
    cloud.workers(1)
    (cloud.repo / "new.py").touch()
    code, _, err = cloud.run("install.sh", "pod")
    assert code == 1 and "uncommitted changes" in err and "--allow-dirty" in err and cloud.calls() == []
    code, _, err = cloud.run("install.sh", "pod", "--allow-dirty")
    assert code == 0 and f"sending commit {cloud.commit[:12]}" in err
    assert not (cloud.folder / "homes/pod-0/stepaudio/src/new.py").exists()
    assert cloud.run("install.sh", "pod", "--commit", cloud.commit)[0] == 0


def test_no_such_commit(cloud):
    code, _, err = cloud.run("install.sh", "pod", "--commit", "nowhere")
    assert code == 1 and "--commit nowhere: no such commit" in err and cloud.calls() == []


def test_a_worker_that_fails_to_install(cloud):
    cloud.workers(3)
    (cloud.folder / "homes/pod-1-1").mkdir()
    (cloud.folder / "homes/pod-1-1/broken").touch()
    code, _, err = cloud.run("install.sh", "pod", "--slices", "2")
    assert code == 1
    assert "pod-1-1: no wheel for this machine\n" in err
    assert "the installation failed on pod-1, worker 1, exit status 1" in err
    assert "on pod-0" not in err and "Attempting" not in err
    assert err.splitlines()[-1].startswith("install.sh: not everything is installed")


def test_copying_that_fails(cloud):
    cloud.answer("scp", stderr="ERROR: key is not in the agent\n", code=1)
    code, _, err = cloud.run("install.sh", "pod")
    assert code == 1 and "key is not in the agent" in err and "ssh-add" in err and len(cloud.calls()) == 1


def test_run_calls(cloud):
    words = ("--config", "configs/sft_33b.py", "--workdir", "gs://b/run 1", "--", '--config.name=it\'s "x" $HOME')
    assert cloud.run("run.sh", "pod", *PLACE, *words)[0] == 0
    train = r"train --config=configs/sft_33b.py --workdir=gs://b/run\ 1 --config.name=it\'s\ \"x\"\ \$HOME"
    assert cloud.calls() == [ssh("pod", f"bash stepaudio/src/launch/worker.sh start -- {train}")]


ODD = ["--config=configs/a b.py", "--workdir=gs://b/it's", '--config.name="x" $HOME `id` \\ & * ; é', "--", "-x"]


def test_words_arrive_as_they_were(cloud):
    cloud.workers(2)
    assert cloud.run("install.sh", "pod", "--slices", "2")[0] == 0
    words = ("--config", ODD[0].split("=", 1)[1], "--workdir", ODD[1].split("=", 1)[1], "--", *ODD[2:])
    code, _, err = cloud.run("run.sh", "pod", "--slices", "2", *words)
    assert code == 0 and "launch/logs.sh pod --slices=2 --queued" in err
    assert cloud.run("stop.sh", "pod", "--slices", "2")[0] == 0  # waits for them
    for host in ("pod-0-0", "pod-0-1", "pod-1-0", "pod-1-1"):
        assert (cloud.folder / "homes" / host / "arguments").read_text().splitlines() == ["train", *ODD]


def test_run_before_install(cloud):
    cloud.workers(1)
    code, _, err = cloud.run("run.sh", "pod", "--config", "c", "--workdir", "w")
    assert code == 1 and "No such file" in err and "launch/install.sh pod" in err


def test_one_job_at_a_time(cloud):
    cloud.workers(2)
    (cloud.folder / "program").write_text("exec tail -f /dev/null\n")
    assert cloud.run("install.sh", "pod")[0] == 0
    job = ("run.sh", "pod", "--config", "c", "--workdir", "w")
    assert cloud.run(*job)[0] == 0
    code, _, err = cloud.run(*job)
    assert code == 1 and "pod-1: a job runs here already" in err and "worker 0 1" in err
    code, _, err = cloud.run("install.sh", "pod")
    assert code == 1 and "pod-0: a job runs here" in err
    assert (cloud.folder / "homes/pod-0/stepaudio/venv").exists()
    assert cloud.run("stop.sh", "pod")[0] == 0
    assert cloud.run("install.sh", "pod")[0] == 0
    shutil.rmtree(cloud.folder / "homes/pod-0/stepaudio/venv")
    code, _, err = cloud.run(*job)
    assert code == 1 and "pod-0: no " in err and "worker 0, exit status 1" in err


def test_stop_calls(cloud):
    code, _, err = cloud.run("stop.sh", "pod", *PLACE)
    stop = "if [ -e stepaudio/src/launch/worker.sh ]; then bash stepaudio/src/launch/worker.sh stop; fi"
    assert code == 0 and cloud.calls() == [ssh("pod", stop)]
    assert "still costs money until launch/delete.sh pod" in err


LOG = "tail -n 100 -F stepaudio/run/log"
ALL = 'tail -n 5 stepaudio/run/log 2>&1 | sed -u "s/^/$(hostname): /"'


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), [("pod", "0", LOG)]),
        (("--worker", "3"), [("pod", "3", LOG)]),
        (("--slices", "2", "--slice", "1"), [("pod-1", "0", LOG)]),
        (("--slices", "2", "--worker=all", "--lines=5", "--no-follow"), [("pod-0", "all", ALL), ("pod-1", "all", ALL)]),
    ],
)
def test_logs_calls(cloud, words, expected):
    assert cloud.run("logs.sh", "pod", *PLACE, *words)[0] == 0
    assert sorted(cloud.calls()) == [ssh(node, command, worker) for node, worker, command in expected]


def test_logs_mistakes(cloud):
    assert "--worker: expected a number or all" in cloud.run("logs.sh", "pod", "--worker", "x")[2]
    assert "--slice 1: pod has the slices 0 to 0" in cloud.run("logs.sh", "pod", "--slice", "1")[2]
    assert cloud.calls() == []
