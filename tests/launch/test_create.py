"""create, wait, delete, list: the exact calls, and what is said when Google Cloud says no."""

import pytest

TPU = ["compute", "tpus", "tpu-vm"]
QUEUE = ["compute", "tpus", "queued-resources"]
PLACE = ("--zone", "us-east5-a", "--project", "p")
THERE = ["--zone=us-east5-a", "--project=p", "--quiet"]


def test_create_on_demand(cloud):
    code, _, err = cloud.run("create.sh", "pod", "--type", "v5p-128", *PLACE)
    assert code == 0 and "launch/wait.sh pod --zone=us-east5-a --project=p" in err
    assert cloud.calls() == [
        [*TPU, "create", "pod", "--accelerator-type=v5p-128", "--version=v2-alpha-tpuv5", *THERE],
    ]


def test_create_spot_where_gcloud_is_configured_for(cloud):
    assert cloud.run("create.sh", "pod", "--type=v6e-8", "--spot")[0] == 0
    assert cloud.calls() == [
        [*TPU, "create", "pod", "--accelerator-type=v6e-8", "--version=v2-alpha-tpuv6e", "--spot", "--quiet"],
    ]


def test_create_queued(cloud):
    words = ("pod", "--type", "v4-8", "--queued", "--valid-until", "6h", "--spot", *PLACE)
    assert cloud.run("create.sh", *words)[0] == 0
    kind = ["--accelerator-type=v4-8", "--runtime-version=tpu-ubuntu2204-base"]
    assert cloud.calls() == [
        [*QUEUE, "create", "pod", *kind, "--node-id=pod", "--spot", "--valid-until-duration=6h", *THERE],
    ]


def test_create_slices(cloud):
    assert cloud.run("create.sh", "pod", "--type", "v5litepod-16", "--slices", "4", *PLACE)[0] == 0
    kind = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
    assert cloud.calls() == [[*QUEUE, "create", "pod", *kind, "--node-count=4", "--node-prefix=pod", *THERE]]


def test_create_another_version(cloud):
    assert cloud.run("create.sh", "pod", "--type", "v9-8", "--version", "v2 odd")[0] == 0
    assert cloud.calls() == [[*TPU, "create", "pod", "--accelerator-type=v9-8", "--version=v2 odd", "--quiet"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--type", "v9-8"), "v5p-128"),
        (("--type", "tpu7x-8"), "GKE only; use gke.sh"),
        ((), "--type is missing"),
        (("--type", "v4-8", "--valid-until", "6h"), "--valid-until is for --queued"),
        (("--type", "v4-8", "--slices", "0"), "--slices: expected a whole number above 0"),
        (("--type", "v4-8", "--spot=yes"), "--spot takes no value"),
        (("--type", "--spot"), "--type needs a value"),
        (("--typ", "v4-8"), 'no such flag: "--typ"; expected one of: --zone='),
        (("pod2", "--type", "v4-8"), 'expected one name, found "pod" and "pod2"'),
    ],
)
def test_mistakes_are_one_line_and_call_nothing(cloud, words, message):
    code, out, err = cloud.run("create.sh", "pod", *words)
    assert (code, out, err.count("\n"), cloud.calls()) == (2, "", 1, [])
    assert message in err and "create.sh --help" in err


QUOTA = "ERROR: (gcloud.compute.tpus.tpu-vm.create) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPerProject' exceeded.\n"
CAPACITY = 'ERROR: (gcloud.compute.tpus.tpu-vm.create) There is no more capacity in the zone "z" [code=8]\n'


def test_quota_refusal(cloud):
    cloud.answer("create", stderr=QUOTA, code=1)
    code, _, err = cloud.run("create.sh", "pod", "--type", "v5p-128", *PLACE)
    told, ours = err.splitlines()
    assert code == 1 and told + "\n" == QUOTA
    assert ours.startswith("create.sh: refused for lack of quota for v5p-128 here: ask for")
    assert all(way in ours for way in ("Quotas", "--zone", "--type", "--spot"))


def test_no_capacity(cloud):
    cloud.answer("create", stderr=CAPACITY, code=1)
    code, _, err = cloud.run("create.sh", "pod", "--type", "v5p-128")
    assert code == 75 and "--queued waits for one" in err.splitlines()[-1]


def test_any_other_refusal(cloud):
    cloud.answer("create", stderr="ERROR: PERMISSION_DENIED\n", code=1)
    code, _, err = cloud.run("create.sh", "pod", "--type", "v5p-128")
    assert code == 1 and "PERMISSION_DENIED" in err and "could not create pod" in err


def describes(kind, words=()):
    state = "state" if kind is TPU else "state.state"
    return [*kind, "describe", "pod", f"--format=value({state})", *words, "--quiet"]


def test_wait_until_ready(cloud):
    for state in ("CREATING", "CREATING", "READY"):
        cloud.answer("describe", f"{state}\n")
    code, _, err = cloud.run("wait.sh", "pod", "--every", "0.01", *PLACE)
    assert code == 0 and err.splitlines() == ["wait.sh: pod is CREATING", "wait.sh: pod is READY"]
    assert cloud.calls() == [[*describes(TPU)[:-1], *THERE]] * 3


def test_wait_until_active(cloud):
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        cloud.answer("describe", f"{state}\n")
    assert cloud.run("wait.sh", "pod", "--every", "0.01", "--slices", "2")[0] == 0
    assert cloud.calls() == [describes(QUEUE)] * 3


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "PREEMPTED", "TERMINATED", "STOPPED", "DELETING"])
def test_wait_for_what_will_not_come(cloud, state):
    cloud.answer("describe", f"{state}\n")
    code, _, err = cloud.run("wait.sh", "pod", "--queued", "--zone", "z")
    assert code == 1 and f"pod is {state} and will not be ready" in err
    assert "launch/delete.sh pod --zone=z --queued" in err


def test_wait_for_what_is_not_there(cloud):
    cloud.answer("describe", stderr="ERROR: NOT_FOUND: Resource 'pod' was not found\n", code=1)
    code, _, err = cloud.run("wait.sh", "pod")
    assert code == 1 and "there is no pod here" in err


def test_wait_bears_a_moment_without_network(cloud):
    for state in ("CREATING\n", "READY\n"):
        for _ in range(4):
            cloud.answer("describe", stderr="ERROR: no network\n", code=1)
        cloud.answer("describe", state)
    assert cloud.run("wait.sh", "pod", "--every", "0.01")[0] == 0


def test_wait_gives_up_without_network(cloud):
    for _ in range(5):
        cloud.answer("describe", stderr="ERROR: no network\n", code=1)
    code, _, err = cloud.run("wait.sh", "pod", "--every", "0.01")
    assert code == 1 and "no network" in err and "5 times in a row" in err


def test_wait_times_out(cloud):
    for _ in range(200):
        cloud.answer("describe", "CREATING\n")
    code, _, err = cloud.run("wait.sh", "pod", "--every", "0.1", "--timeout", "1")
    assert code == 1 and "still CREATING after 1 s" in err


def test_delete_asks_for_the_name(cloud):
    for typed in ("", "\n", "y\n", "po\n", "pod2\n"):
        code, _, err = cloud.run("delete.sh", "pod", *PLACE, typed=typed)
        assert code == 1 and "nothing deleted" in err and "Type its name" in err
    assert cloud.calls() == []
    assert cloud.run("delete.sh", "pod", *PLACE, typed="pod\n")[0] == 0
    assert cloud.calls() == [[*TPU, "delete", "pod", *THERE]]


def test_delete_queued_and_without_asking(cloud):
    assert cloud.run("delete.sh", "pod", "--yes", "--slices", "2")[0] == 0
    assert cloud.calls() == [[*QUEUE, "delete", "pod", "--force", "--quiet"]]


def test_list(cloud):
    assert cloud.run("list.sh", *PLACE)[0] == 0
    assert cloud.calls() == [[*TPU, "list", *THERE], [*QUEUE, "list", *THERE]]
