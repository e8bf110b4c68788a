"""watch.sh from nothing to the end, through preemption, and where it must stop and say why."""

import os
import signal
import subprocess

from .conftest import alive, until

JOB = ("pod", "--type", "v5p-16", "--config", "configs/a b.py", "--workdir", "gs://b/w", "--every", "0.1")
BLOCK = 'if [ -e "$FAKE/go" ]; then exit 0; fi; exec tail -f /dev/null\n'


def verbs(cloud, *kinds):
    """What was asked of gcloud, without the looks."""
    told = [call[3] for call in cloud.calls() if "status" not in call[5].split("worker.sh", 1)[-1]]
    return [verb for verb in told if verb in kinds]


def take_away(cloud, state="PREEMPTED"):
    """The machines vanish with what runs on them."""
    (cloud.folder / "state/pod").write_text(state)
    cloud.kill_jobs()


def end(watch, cloud):
    out, err = watch.communicate(timeout=600)
    assert out == ""
    return watch.returncode, err


def test_from_nothing_to_the_end(cloud):
    cloud.workers(2)
    code, _, err = cloud.run("watch.sh", *JOB, "--spot", "--", "--config.x=1 2")
    assert code == 0 and "watch.sh: done; pod still costs: launch/delete.sh pod" in err
    assert verbs(cloud, "create", "scp", "delete") == ["create", "scp"]
    assert cloud.calls()[1][3:6] == ["create", "pod", "--accelerator-type=v5p-16"] and "--spot" in cloud.calls()[1]
    for worker in range(2):
        words = (cloud.folder / f"homes/pod-{worker}/arguments").read_text().splitlines()
        assert words == ["train", "--config=configs/a b.py", "--workdir=gs://b/w", "--config.x=1 2"]


def test_preemption_in_the_middle(cloud):
    cloud.own_repo()
    cloud.workers(2)
    (cloud.folder / "program").write_text(BLOCK)
    watch = cloud.start("watch.sh", *JOB)
    until(lambda: cloud.starts("pod-0") == cloud.starts("pod-1") == 1)
    cloud.change("later.py")  # is not what runs here
    (cloud.repo / "dirty").touch()
    take_away(cloud)
    until(lambda: cloud.starts("pod-0") == cloud.starts("pod-1") == 2)
    (cloud.folder / "go").touch()
    cloud.kill_jobs()  # as when the machines were started again: nothing runs there
    code, err = end(watch, cloud)
    assert code == 0, err
    assert "pod was preempted: making it again" in err
    assert verbs(cloud, "create", "delete") == ["create", "delete", "create"]
    assert not (cloud.folder / "homes/pod-0/stepaudio/src/later.py").exists()
    (delete,) = [call for call in cloud.calls() if call[3] == "delete"]
    assert delete == ["compute", "tpus", "tpu-vm", "delete", "pod", "--quiet"]


def test_preemption_of_slices(cloud):
    cloud.workers(1)
    (cloud.folder / "program").write_text(BLOCK)
    watch = cloud.start("watch.sh", *JOB, "--slices", "2")
    until(lambda: cloud.starts("pod-0-0") == 1 and cloud.starts("pod-1-0") == 1)
    (cloud.folder / "go").touch()
    take_away(cloud, "SUSPENDED")
    code, err = end(watch, cloud)
    assert code == 0, err
    assert verbs(cloud, "create", "delete") == ["create", "delete", "create"]
    assert [call[2] for call in cloud.calls() if call[3] in ("create", "delete")] == ["queued-resources"] * 3


def test_one_slice_gone_while_the_queue_calls_it_active(cloud):
    cloud.workers(1)
    (cloud.folder / "state/pod").write_text("ACTIVE")
    cloud.answer("ssh pod-1 ", code=255)
    cloud.answer("describe pod-0 ", "READY\n")
    cloud.answer("describe pod-1 ", "PREEMPTED\n")
    code, _, err = cloud.run("watch.sh", *JOB, "--slices", "2")
    assert code == 0, err
    assert verbs(cloud, "create", "delete") == ["delete", "create"]


def test_preemption_during_the_installation(cloud):
    cloud.workers(1)
    cloud.answer("worker.sh install", stderr="connection lost\n", code=255, pod="PREEMPTED")
    code, _, err = cloud.run("watch.sh", *JOB)
    assert code == 0, err
    assert "connection lost" in err and verbs(cloud, "create", "delete") == ["create", "delete", "create"]


def test_a_run_that_fails_because_it_is_taken_away(cloud):
    cloud.workers(1)
    cloud.answer("worker.sh status", "stepaudio pod-0 absent\n")
    cloud.answer("worker.sh status", "stepaudio pod-0 failed 1\n", pod="PREEMPTED")
    code, _, err = cloud.run("watch.sh", *JOB)
    assert code == 0, err
    assert verbs(cloud, "create", "delete") == ["create", "delete", "create"]


def test_capacity_is_asked_for_again(cloud):
    cloud.workers(1)
    for _ in range(2):
        cloud.answer("create", stderr="ERROR: There is no more capacity in the zone\n", code=1)
    code, _, err = cloud.run("watch.sh", *JOB)
    assert code == 0 and err.count("asking again in 0.1 s") == 2
    assert verbs(cloud, "create") == ["create"] * 3


def test_no_quota_ends_it(cloud):
    cloud.workers(1)
    cloud.answer("create", stderr="ERROR: Quota limit exceeded\n", code=1)
    code, _, err = cloud.run("watch.sh", *JOB)
    assert code == 1 and "lack of quota" in err and verbs(cloud, "create") == ["create"]


def test_quota_that_was_there_comes_back(cloud):
    cloud.workers(1)
    (cloud.folder / "state/pod").write_text("PREEMPTED")
    cloud.answer("create", stderr="ERROR: Quota limit exceeded\n", code=1)
    code, _, err = cloud.run("watch.sh", *JOB)
    assert code == 0, err
    assert verbs(cloud, "create", "delete") == ["delete", "create", "create"]


def test_a_broken_installation_ends_it(cloud):
    cloud.workers(2)
    (cloud.folder / "homes/pod-1").mkdir()
    (cloud.folder / "homes/pod-1/broken").touch()
    code, _, err = cloud.run("watch.sh", *JOB)
    assert code == 1 and "worker 1, exit status 1" in err and "not started (see above); pod still costs" in err


def test_a_failed_run_ends_it(cloud):
    cloud.workers(2)
    (cloud.folder / "program").write_text("case $HOME in *pod-1) exit 2 ;; esac; exec tail -f /dev/null\n")
    code, _, err = cloud.run("watch.sh", *JOB)
    assert code == 1 and "stepaudio pod-1 failed 2" in err and "launch/logs.sh pod" in err


def test_what_ended_before_is_not_this_run(cloud):
    cloud.workers(1)
    for _ in range(2):
        code, _, err = cloud.run("watch.sh", *JOB)
        assert code == 0, err
    assert cloud.starts("pod-0") == 2 and verbs(cloud, "create") == ["create"]


def running(cloud, program=BLOCK):
    cloud.workers(2)
    (cloud.folder / "program").write_text(program)
    watch = cloud.start("watch.sh", *JOB)
    until(lambda: cloud.starts("pod-0") == cloud.starts("pod-1") == 1)
    until(lambda: "status" in cloud.calls()[-1][6])
    return watch


def test_stopped_by_hand(cloud):
    watch = running(cloud)
    assert cloud.run("stop.sh", "pod")[0] == 0
    code, err = end(watch, cloud)
    assert code == 1 and "stop.sh stopped the run" in err


def test_deleted_by_hand_is_not_made_again(cloud):
    watch = running(cloud)
    cloud.kill_jobs()
    (cloud.folder / "state/pod").unlink()
    code, err = end(watch, cloud)
    assert code == 1 and "someone deleted it, so it is not made again" in err
    assert verbs(cloud, "create", "delete") == ["create"]


def test_it_goes_on_with_what_is_there(cloud):
    watch = running(cloud)
    os.killpg(watch.pid, signal.SIGINT)
    code, err = end(watch, cloud)
    assert code == 130 and "What runs goes on and costs money" in err
    job = int((cloud.folder / "homes/pod-0/stepaudio/run/pid").read_text())
    assert alive(job)
    again = cloud.start("watch.sh", *JOB, stderr=subprocess.PIPE)
    assert again.stderr.readline() == "watch.sh: a run is there already: watching it\n"
    (cloud.folder / "go").touch()
    take_away(cloud)
    assert end(again, cloud)[0] == 0
