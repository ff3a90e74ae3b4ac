"""A cluster of three machines from `ray up` to `ray down`, as a user of `on_premises.yaml` has it.

The file is used as it stands. Its machines are made of namespaces, see `hosts`. Nothing can be
downloaded there: what `pip install` would bring is there already, and nothing else of the file is
left out.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from search.record.files import read_record, search_names
from search.record.record import SearchRecord
from search.record.storage import Storage
from tests.endurance.hosts import Host, Network, needs_hosts, network
from tests.endurance.laptop import KDSEARCH, Laptop
from tests.integration import checks
from tests.integration.commands import wait_until
from tests.integration.ray_cluster import ROOT

pytestmark = pytest.mark.integration

FILE = "experiments/clusters/on_premises.yaml"
TRIALS = 3
EXPERIMENT = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 1, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 60, "learning_rate": 0.1},
    "search": {"trials": TRIALS, "asha": None},
}
MLFLOW = "http://127.0.0.1:5000"
SSH = "ssh -o StrictHostKeyChecking=no -o LogLevel=ERROR"

# By name in the table of `search/README.md`, what its processes' command lines have.
PROCESSES = {
    "`sshd`": r"^sshd: ",
    "MLflow": r"mlflow",
    "Ray's dashboard and job server": r"dashboard/dashboard\.py",
    "Ray's GCS": r"gcs_server",
    "Ray Client's server": r"ray\.util\.client\.server",
    "raylet": r"/raylet ",
    "Ray's agents": r"^ray::(Dashboard|RuntimeEnv)Agent",
    "the driver, trials, tasks": r"^ray::(?!Dashboard|RuntimeEnv)|bin/kdsearch|bin/ray::",
}

# Asks servers that speak gRPC for something, without the token.
ASK = """
import sys
import grpc

METHODS = (
    "InternalKVGcsService/InternalKVKeys", "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull", "CoreWorkerService/NumPendingTasks", "RayletDriver/Init",
    "ReporterService/ReportOCMetrics",
)
for place in sys.argv[1:]:
    channel = grpc.insecure_channel(place)
    codes = set()
    for method in METHODS:
        ask = channel.unary_unary(
            f"/ray.rpc.{method}", request_serializer=bytes, response_deserializer=bytes
        )
        try:
            ask(b"", timeout=60)
            codes.add("OK")
        except grpc.RpcError as error:
            codes.add(error.code().name)
    print(place, *sorted(codes - {"UNIMPLEMENTED"}))
"""


class Cluster:
    """The machines of the file, and the laptop of their user."""

    def __init__(self, net: Network, laptop: Laptop) -> None:
        self.laptop, self.shared = laptop, net.shared
        self.storage = Storage(str(net.shared))
        self.head = net.hosts["head"]
        self.workers = [host for name, host in net.hosts.items() if name.startswith("worker")]

    @property
    def hosts(self) -> list[Host]:
        return [self.head, *self.workers]

    def on_head(self, command: str) -> str:
        """What a command prints that its user types on the head."""
        login = f"{SSH} ubuntu@{self.head.address} bash -l -c"
        return self.laptop.typed(f"{login} {shlex.quote(shlex.quote(command))}")

    def answers(self, places: list[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """What is answered to the laptop without a token at addresses and ports."""
        answers = {place: self.laptop.http_status(*place) for place in places}
        others = [place for place, answer in answers.items() if answer == "000"]
        words = " ".join(f"{address}:{port}" for address, port in others)
        said = self.laptop.typed(f"{sys.executable} -c {shlex.quote(ASK)} {words}")
        for place, line in zip(others, said.splitlines(), strict=True):
            answers[place] = line.partition(" ")[2]
        return answers


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The machines after `ray up`, which waits for the head alone; no other is plugged in."""
    needs_hosts()
    folder = tmp_path_factory.mktemp("hosts")
    provider = yaml.safe_load((ROOT / FILE).read_text())["provider"]
    names = {"192.0.2.2": "laptop", provider["head_ip"]: "head"}
    names |= {address: f"worker{n}" for n, address in enumerate(provider["worker_ips"], start=1)}
    with network(folder, names) as net:
        (net.shared / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
        laptop = Laptop(net.hosts["laptop"], folder, {})
        cluster = Cluster(net, laptop)
        try:
            for worker in cluster.workers:
                worker.cut_off()
            laptop.typed("umask 077; ray get-auth-token --generate")
            laptop.typed(f"ray up --yes {FILE}")
            yield cluster
        finally:
            laptop.close()


@dataclass(frozen=True)
class Searched:
    """A search that was submitted before a worker was there, and lost one later.

    Args:
        record: of it, at its end.
        said: what following it has printed.
        listening: by machine, address and port, the command line of who listened while it ran.
        answers: by address and port, what was answered over the network without the token.
    """

    record: SearchRecord
    said: str
    listening: dict[Host, dict[tuple[str, int], str]]
    answers: dict[tuple[str, int], str]


@pytest.fixture(scope="module")
def searched(cluster: Cluster) -> Searched:
    storage = cluster.storage
    cluster.laptop.forwards_dashboard(FILE)
    submit = f"exec {KDSEARCH} submit /srv/task.yaml --storage /srv --follow"
    follow = cluster.laptop.started(submit, "follow.txt")
    follow.until("of which 0 of 2 are there")
    assert search_names(storage) == []
    for worker in cluster.workers:
        worker.connect()

    def all_train() -> bool:
        trials = read_record(storage, "task-1").trials if search_names(storage) else ()
        return len(trials) == TRIALS and all(trial.epochs_done for trial in trials)

    follow.until("teacher resnet8: held-out")
    wait_until(all_train)
    lost, *left = sorted(cluster.workers, key=trains, reverse=True)
    lost.cut_off()
    lost.kill_all()
    listening = {host: host.listening() for host in (cluster.head, *left)}
    answers = cluster.answers(
        [
            (host.address, port)
            for host, ports in listening.items()
            for (address, port), command in ports.items()
            if not address.startswith("127.") and not command.startswith("sshd")
        ]
    )
    # Ray ends idle processes when it likes to.
    still = {(host.address, port) for host in listening for _, port in host.listening()}
    answers = {place: answer for place, answer in answers.items() if place in still}
    follow.until("continues from its checkpoint")
    lost.connect()
    assert follow.wait() == 0, follow.said
    return Searched(read_record(storage, "task-1"), follow.said, listening, answers)


def trains(host: Host) -> bool:
    """Whether trials run on a machine."""
    return any("ray::ImplicitFunc" in line for line in host.processes())


def test_a_search_waits_for_machines_that_are_on_their_way(searched: Searched) -> None:
    said = searched.said
    assert "waiting for the cluster's machines, of which 0 of 2 are there" in said
    assert "trials compute on the CPU, 1 core each: there is no GPU" in said
    assert "machines are there, and no other has come" not in said


def test_trials_of_a_lost_machine_go_on_elsewhere(searched: Searched) -> None:
    assert re.search(r"trial \d+ continues from its checkpoint, after: ", searched.said)
    assert "task-1 (finished)" in searched.said
    checks.every_trial_is_there_once_and_ended(searched.record)
    assert {trial.state for trial in searched.record.trials} == {"finished"}


def test_the_laptop_sees_the_search(cluster: Cluster, searched: Searched) -> None:
    status = cluster.laptop.typed(f"{KDSEARCH} status task-1")
    assert "task-1: succeeded" in status
    assert f"{TRIALS} finished of {TRIALS}" in status
    assert "task-1 (finished)" in cluster.laptop.typed(f"{KDSEARCH} logs task-1")


def test_mlflows_page_comes_by_ssh_and_asks_for_its_password(
    cluster: Cluster, searched: Searched
) -> None:
    assert searched.record.tracking_uri == MLFLOW
    cluster.laptop.started(
        f"exec {SSH} -N -L 5000:127.0.0.1:5000 ubuntu@{cluster.head.address}", "tunnel.txt"
    )
    wait_until(lambda: cluster.laptop.http_status("127.0.0.1", 5000) == "401")
    password = cluster.on_head("cat ~/.mlflow/credentials").split()[-1]
    ids = f'{{"experiment_ids": ["{searched.record.mlflow_experiment_id}"]}}'
    asked = f"curl -s -u admin:{password} -H 'Content-Type: application/json' -d '{ids}'"
    runs = cluster.laptop.typed(f"{asked} {MLFLOW}/api/2.0/mlflow/runs/search")
    roles = [
        tag["value"]
        for run in json.loads(runs)["runs"]
        for tag in run["data"]["tags"]
        if tag["key"] == "kdsearch.role"
    ]
    assert roles.count("trial") == TRIALS
    assert "<title>MLflow</title>" in cluster.laptop.typed(f"curl -s -u admin:{password} {MLFLOW}/")


def test_a_lost_machine_comes_back(cluster: Cluster, searched: Searched) -> None:
    wait_until(lambda: " 3 local.cluster.node" in cluster.on_head("ray status"))


def test_a_search_that_is_launched_on_the_head_logs_to_the_same_server(
    cluster: Cluster, searched: Searched
) -> None:
    short = "--set training.epochs=1 --set search.trials=1"
    cluster.on_head(
        f"kdsearch launch /srv/task.yaml --name by-hand --address auto --storage /srv {short}"
    )
    assert read_record(cluster.storage, "by-hand").tracking_uri == MLFLOW
    assert not (cluster.shared / "mlflow.db").exists()


def test_who_listens_where_is_what_the_readme_says(cluster: Cluster, searched: Searched) -> None:
    readme = (ROOT / "search/README.md").read_text()
    table = readme.partition("| process | machines | address | who is answered |\n")[2]
    said = set()
    for line in table.partition("\n\n")[0].splitlines()[1:]:
        name, machines, address, _ = (cell.strip() for cell in line.strip("|").split("|"))
        roles = ("head", "worker") if machines == "all" else (machines,)
        said |= {(name, role, address) for role in roles}
    found = set()
    for host, ports in searched.listening.items():
        role = "head" if host is cluster.head else "worker"
        for (address, port), command in ports.items():
            names = [name for name, words in PROCESSES.items() if re.search(words, command)]
            assert names or not command.strip(), f"{command} listens on {address}:{port}"
            where = "127.0.0.1" if address.startswith("127.") else "network"
            known = {each[2] for each in said if each[:2] == (names[0], role)} if names else set()
            with_port = f"{where}:{port}"
            found |= {(name, role, with_port if with_port in known else where) for name in names}
    # Some have both: the network is open, then.
    opened = {(name, role) for name, role, where in found if where.startswith("network")}
    found -= {each for each in found if each[:2] in opened and each[2].startswith("127.")}
    assert found == said


def test_nobody_is_answered_without_the_token(searched: Searched) -> None:
    assert len(searched.answers) > 10
    assert set(searched.answers.values()) <= {"401", "UNAUTHENTICATED"}


def test_files_are_readable_by_whom_they_are_for(cluster: Cluster, searched: Searched) -> None:
    for host in cluster.hosts:
        assert host.run("stat", "-c", "%a", ".ray/auth_token").strip() == "600"
    there = [path for path in cluster.shared.rglob("*") if path.name != "task.yaml"]
    assert any(path.name == "student.safetensors" for path in there)
    assert not [path for path in there if path.is_file() and path.stat().st_mode & 0o044 != 0o044]
    assert not [path for path in there if path.name.startswith(".reach-test")]


def test_ray_down_leaves_nothing_behind(cluster: Cluster, searched: Searched) -> None:
    cluster.laptop.ends_dashboard()
    cluster.laptop.typed(f"ray down --yes {FILE}")
    wait_until(lambda: not any(host.processes() for host in cluster.hosts))
