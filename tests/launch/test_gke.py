"""The JobSet: what is filled in, what is refused, what is applied."""

import pytest
import yaml

from .conftest import LAUNCH

JOB = ("--image", "europe-docker.pkg.dev/p/r/stepaudio:1", "--config", "configs/a b.py", "--workdir", "gs://b/w")
ODD = ["x: 'y' \"z\"", "back\\slash", "a&b", "@NAME@", "#no", "é", "$(HOME) $$", ""]


def manifest(cloud, *words):
    code, out, err = cloud.run("gke.sh", "pod", *JOB, "--dry-run", *words)
    assert (code, err) == (0, "")
    assert out.startswith("# kubectl apply -f -\n")
    return yaml.safe_load(out)


@pytest.mark.parametrize(
    ("chip", "topology", "accelerator", "hosts", "chips"),
    [
        ("v4", "2x2x1", "tpu-v4-podslice", 1, 4),
        ("v5e", "4x8", "tpu-v5-lite-podslice", 8, 4),
        ("v5p", "4x4x4", "tpu-v5p-slice", 16, 4),
        ("v5p", "8x8x16", "tpu-v5p-slice", 256, 4),
        ("v6e", "1x1", "tpu-v6e-slice", 1, 1),
        ("v6e", "16x16", "tpu-v6e-slice", 64, 4),
        ("tpu7x", "2x4x4", "tpu7x", 8, 4),
    ],
)
def test_counts(cloud, chip, topology, accelerator, hosts, chips):
    spec = manifest(cloud, "--chip", chip, "--topology", topology, "--slices", "3", "--max-restarts", "7")["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 7
    (group,) = spec["replicatedJobs"]
    job = group["template"]["spec"]
    assert (group["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (3, hosts, hosts, 0)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    wanted = {"google.com/tpu": chips}
    assert pod["containers"][0]["resources"] == {"requests": wanted, "limits": wanted}


def test_eight_chips_on_one_host(cloud):
    spec = manifest(cloud, "--chip", "v6e", "--topology", "2x4", "--chips-per-host", "8")["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == 1
    assert job["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"] == 8


def test_the_rest_of_it(cloud):
    whole = manifest(cloud, "--chip", "v5p", "--topology", "2x2x4", "--namespace", "ns", "--account", "ksa")
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert whole["metadata"] == {
        "name": "pod",
        "namespace": "ns",
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
    }
    job = whole["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert (pod["serviceAccountName"], pod["restartPolicy"]) == ("ksa", "Never")
    assert (container["image"], container["command"]) == (JOB[1], ["stepaudio"])
    assert container["args"] == ["train", "--config=configs/a b.py", "--workdir=gs://b/w"]
    # Exit status 2 of the container that there is fails its job, and that fails the set.
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert whole["spec"]["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]


def test_odd_words_arrive(cloud):
    spec = manifest(cloud, "--chip", "v5p", "--topology", "2x2x4", "--", *ODD)["spec"]
    args = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [word.replace("$$", "$") for word in args[3:]] == ODD  # Kubernetes makes $ of $$
    assert not any("$(" in word.replace("$$", "") for word in args)


def test_every_name_in_the_template_is_filled(cloud):
    assert "@NAME@" in (LAUNCH / "gke/jobset.yaml").read_text()
    out = cloud.run("gke.sh", "pod", *JOB, "--chip", "v5p", "--topology", "2x2x4", "--dry-run")[1]
    assert "@" not in out.replace("@…@", "")


def test_apply(cloud):
    code, _, err = cloud.run("gke.sh", "pod", *JOB, "--chip", "v5p", "--topology", "2x2x4")
    assert code == 0 and "kubectl logs -f job/pod-slice-0 -n default" in err
    assert (cloud.folder / "kubectl").read_text().splitlines() == ["apply", "-f", "-"]
    assert yaml.safe_load((cloud.folder / "manifest").read_text()) == manifest(
        cloud, "--chip", "v5p", "--topology", "2x2x4"
    )


def test_kubectl_that_fails(cloud):
    cloud.program("kubectl", "cat >/dev/null; echo 'no cluster' >&2; exit 1")
    code, _, err = cloud.run("gke.sh", "pod", *JOB, "--chip", "v5p", "--topology", "2x2x4")
    assert code == 1 and "no cluster" in err and "kubectl logs" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("my pod",), 'NAME "my pod": expected at most 40'),
        (("p" * 41,), "expected at most 40"),
        (("pod", "--chip", "v7"), "--chip: expected v4"),
        (("pod", "--topology", "4x4"), "v5p has 3 axes, expected 2x2x4 or alike"),
        (("pod", "--topology", "4x4x0"), "3 axes"),
        (("pod", "--topology", "4*4*4"), "3 axes"),
        (("pod", "--chips-per-host", "3"), "does not divide the 64 chips"),
        (("pod", "--image", "a b"), '"a b": expected letters'),
        (("pod", "--namespace", "a\nb"), "expected letters"),
        (("pod", "--", "a\nb"), "control character"),
        (("pod", "--slices", "none"), "--slices: expected a whole number"),
    ],
)
def test_mistakes(cloud, words, message):
    name, *flags = words
    code, out, err = cloud.run("gke.sh", name, "--chip", "v5p", "--topology", "4x4x4", *JOB, *flags)
    assert (code, out) == (2, "") and message in err and not (cloud.folder / "kubectl").exists()
