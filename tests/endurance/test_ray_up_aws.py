"""`cluster.yaml` from `ray up` to `ray down`, with the README's own search, where moto is Amazon.

Machines are made of namespaces, see `hosts`, and get the addresses and the key of what is launched.
The image's programs `apt-get` and `cloud-init` only note that they were called.
"""

import json
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.debian import fashion_mnist
from tests.endurance.hosts import Host, Network, needs_hosts, network
from tests.endurance.laptop import KDSEARCH, Laptop
from tests.integration.commands import wait_until
from tests.integration.ray_cluster import ROOT

pytestmark = pytest.mark.integration

AMAZON, PORT, REGION = "192.0.2.3", 5555, "us-west-2"
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": f"http://{AMAZON}:{PORT}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}
NOTED = 'echo "${0##*/} $*" >> ~/noted'
PROGRAMS = {"sudo": 'exec "$@"', "apt-get": NOTED, "cloud-init": NOTED}
STORAGE = f"s3://kdsearch/kdsearch?endpoint_override={AMAZON}:{PORT}&scheme=http&region={REGION}"
# Of which a worker of the file holds four.
TRIALS = 5

# Prints what has been launched, as often as it changes.
WATCH = """
import json
import time
import boto3

ec2, known = boto3.client("ec2"), None
while True:
    answer = ec2.describe_instances()["Reservations"]
    found = [instance for each in answer for instance in each["Instances"]]
    if (now := json.dumps(found, default=str, sort_keys=True)) != known:
        print(known := now, flush=True)
    time.sleep(1)
"""
# Runs commands as Amazon's own program takes them.
RUN = """
import json
import sys
import boto3

for service, operation, *options in json.loads(sys.argv[1]):
    names = ["".join(map(str.title, option[2:].split("-"))) for option in options[::2]]
    client = boto3.client(service)
    getattr(client, operation.replace("-", "_"))(**dict(zip(names, options[1::2], strict=True)))
"""
# What the file's user has to put into it.
HAVE = """
import sys
import boto3

print(boto3.client("ec2").describe_images(Owners=["amazon"])["Images"][0]["ImageId"])
boto3.client("s3").create_bucket(
    Bucket="kdsearch", CreateBucketConfiguration={"LocationConstraint": sys.argv[1]}
)
"""
GROUPS = """
import json
import boto3

print(json.dumps(boto3.client("ec2").describe_security_groups()["SecurityGroups"]))
"""


class Amazon:
    """Gives machines to what is launched, as it is launched.

    Args:
        net: the machines.
        laptop: whose key opens them.
    """

    def __init__(self, net: Network, laptop: Laptop) -> None:
        self._net, self._laptop = net, laptop
        self._free = [host for name, host in net.hosts.items() if name.startswith("machine")]
        self.hosts: dict[str, Host] = {}
        self._ends = threading.Event()
        self._watch = laptop.started(_python(WATCH), "instances.txt")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def instances(self) -> list[dict[str, Any]]:
        """What was launched, in order."""
        lines = self._watch.said.splitlines()
        found: list[dict[str, Any]] = json.loads(lines[-1]) if lines else []
        return sorted(found, key=lambda instance: str(instance["LaunchTime"]))

    def close(self) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ends.wait(0.5):
            for instance in self.instances:
                if instance["InstanceId"] not in self.hosts and self._free:
                    host = self._free.pop(0)
                    self._net.give(
                        host, *map(instance.get, ("PublicIpAddress", "PrivateIpAddress"))
                    )
                    key = self._laptop.typed("ssh-keygen -y -f ~/.ssh/ray-autoscaler*.pem")
                    host.run("sh", "-c", f"echo {shlex.quote(key.strip())} >> .ssh/authorized_keys")
                    self.hosts[instance["InstanceId"]] = host


Up = tuple[Laptop, Amazon]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The laptop and Amazon after what stands at the head of the file, and `ray up`."""
    needs_hosts()
    fashion_mnist()
    folder = tmp_path_factory.mktemp("aws")
    names = {"192.0.2.2": "laptop", AMAZON: "amazon"}
    names |= {f"192.0.2.{10 + number}": f"machine{number}" for number in range(3)}
    with network(folder, names, variables=ENVIRONMENT, programs=PROGRAMS) as net:
        laptop = Laptop(net.hosts["laptop"], folder, ENVIRONMENT)
        cloud = Laptop(net.hosts["amazon"], folder, {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"})
        cloud.started(f"exec {sys.executable} -m moto.server -H {AMAZON} -p {PORT}", "moto.txt")
        wait_until(lambda: laptop.http_status(AMAZON, PORT) != "000")
        image = laptop.typed(_python(HAVE, REGION)).split()[0]
        text = (ROOT / "cluster.yaml").read_text().replace("YOUR-BUCKET", "kdsearch")
        (net.shared / "cluster.yaml").write_text(text.replace("ami-00000000000000000", image))
        typed = re.findall(r"^#   aws (.*(?:\n#     .*)*)", text, re.MULTILINE)
        commands = [shlex.split(each.replace("\n#    ", "")) for each in typed]
        # The last one is about a role that the first `ray up` makes.
        *before, after = commands
        laptop.typed(_python(RUN, json.dumps(before)))
        amazon = Amazon(net, laptop)
        try:
            laptop.typed("umask 077; ray get-auth-token --generate")
            laptop.typed("ray up --yes /srv/cluster.yaml")
            laptop.typed(_python(RUN, json.dumps([after])))
            yield laptop, amazon
        finally:
            amazon.close()
            laptop.close()
            cloud.close()


@pytest.fixture(scope="module")
def said(up: Up) -> str:
    """What following the README's search prints, submitted straight after `ray up`."""
    laptop, _ = up
    laptop.forwards_dashboard("/srv/cluster.yaml")
    short = " ".join(
        f"--set {key}={value}"
        for key, value in {
            "data.train_images": 512,
            "teacher.training.epochs": 1,
            "training.epochs": 8,  # trials wait for longer than the autoscaler takes to look
            "search.asha": "null",
            "search.trials": TRIALS,
        }.items()
    )
    submit = f"{KDSEARCH} submit experiments/fashion_mnist.yaml --follow {short}"
    followed = laptop.started(f"KDSEARCH_STORAGE='{STORAGE}' exec {submit}", "follow.txt")
    assert followed.wait() == 0, followed.said
    return followed.said


def test_the_head_is_what_the_file_says(up: Up) -> None:
    _, amazon = up
    (head,) = amazon.instances
    assert head["InstanceType"] == "m5.xlarge"
    assert head.get("InstanceLifecycle") != "spot"
    assert head["IamInstanceProfile"]["Arn"].endswith("/ray-autoscaler-v1")
    noted = amazon.hosts[head["InstanceId"]].run("cat", "noted")
    for line in (
        "cloud-init status --wait",
        "apt-get install -y -qq python3-venv dataset-fashion-mnist",
        "apt-get install -y -qq postgresql",
    ):
        assert line in noted.splitlines()


def test_a_search_starts_its_workers(said: str) -> None:
    for words in (
        "waiting for the first machine, which the cluster starts now; 20 min at most",
        # The machine that has one on paper has none.
        "trials compute on the CPU, 1 core each: PyTorch can use none of the 1 GPUs there",
        "fashion_mnist-1 (finished)",
        f"0 running, 0 stopped, {TRIALS} finished of {TRIALS}",
    ):
        assert words in said


def test_as_many_workers_come_as_trials_wait_for(up: Up, said: str) -> None:
    _, amazon = up
    _, *workers = amazon.instances
    assert len(workers) == 2
    for worker in workers:
        assert worker["InstanceType"] == "g5.xlarge"
        assert worker["InstanceLifecycle"] == "spot"
        assert worker["IamInstanceProfile"]["Arn"].endswith("/kdsearch-worker")


def test_only_ssh_is_open_to_the_world(up: Up) -> None:
    laptop, _ = up
    groups = json.loads(laptop.typed(_python(GROUPS)))
    (group,) = [group for group in groups if group["GroupName"].startswith("ray-autoscaler")]
    open_ = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in open_] == [(22, 22)]
    (own,) = [rule for rule in group["IpPermissions"] if rule["UserIdGroupPairs"]]
    assert [pair["GroupId"] for pair in own["UserIdGroupPairs"]] == [group["GroupId"]]


def test_ray_down_ends_all_that_costs(up: Up, said: str) -> None:
    laptop, amazon = up
    laptop.ends_dashboard()
    laptop.typed("ray down --yes /srv/cluster.yaml")
    wait_until(lambda: {each["State"]["Name"] for each in amazon.instances} == {"terminated"})


def _python(script: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-c", script, *arguments])
