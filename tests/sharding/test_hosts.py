"""Who this process is among others: from flags, from what launchers leave in the environment, or nobody but itself."""

import jax
import pytest

from selecttkd_jax.checks import InputError
from selecttkd_jax.sharding import Hosts, hosts, hosts_from_flags, join_hosts

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
}
TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29400"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
ONE_A_NODE = SLURM | {
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


@pytest.fixture
def joined(monkeypatch):
    """What was handed to JAX: (coordinator, processes, index) and options; empty if it was not asked."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *who, **options: calls.append((who, options)))
    monkeypatch.setattr(hosts.glob, "glob", lambda pattern: [])
    return calls


@pytest.mark.parametrize(
    "said, environment",
    [
        (Hosts(), {}),
        (Hosts(num_processes=1), JOB | TORCHRUN | SLURM),
        (Hosts(), TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}),
        # A batch script before `srun`, and a pod that is no job's.
        (Hosts(), {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}),
        (Hosts(), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),
    ],
)
def test_a_process_by_itself_joins_nobody(joined, said, environment):
    join_hosts(said, 100, environment)
    assert joined == []


@pytest.mark.parametrize(
    "said, environment, who, local",
    [
        (Hosts("node1:12355", 2, 0), {}, ("node1:12355", 2, 0), None),
        (Hosts("node1:12355", 2, 0), SLURM, ("node1:12355", 2, 0), [1]),
        (Hosts(), SLURM, (None, 16, 9), [1]),
        # One process for all GPUs of a node; none are to be seen here, or four.
        (Hosts(), ONE_A_NODE, (None, 2, 1), None),
        (
            Hosts("node1:12355", 2, 1),
            ONE_A_NODE | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            ("node1:12355", 2, 1),
            [0, 1, 2, 3],
        ),
        (Hosts(), OPEN_MPI, (None, 2, 1), [1]),
        (Hosts("node1:12355"), OPEN_MPI, ("node1:12355", 2, 1), [1]),
        (Hosts("node1:12355"), {"PMI_SIZE": "3", "PMI_RANK": "2"}, ("node1:12355", 3, 2), None),
        (Hosts("node1:1"), {"PMI_SIZE": "3", "PMI_RANK": "2", "MPI_LOCALRANKID": "0"}, ("node1:1", 3, 2), [0]),
        (Hosts(), TORCHRUN, ("node1:29401", 4, 3), [1]),
        # The innermost of two launchers counts.
        (Hosts(), SLURM | TORCHRUN, ("node1:29401", 4, 3), [1]),
        (Hosts(), SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"} | OPEN_MPI, (None, 2, 1), [1]),
        (Hosts(), {"JAX_COORDINATOR_ADDRESS": "node1:12355"} | OPEN_MPI, (None, 2, 1), [1]),
    ],
)
def test_who_is_who(joined, said, environment, who, local):
    join_hosts(said, 60, environment)
    assert joined == [(who, {"local_device_ids": local, "heartbeat_timeout_seconds": 60})]


@pytest.mark.parametrize(
    "said, environment, message",
    [
        (Hosts("node1:12355"), {}, "--num-processes and --process-id must be given, too"),
        (Hosts("node1:12355", 2), {}, "join other processes --process-id must be given, too"),
        (Hosts(process_id=1), {}, "--coordinator and --num-processes must be given, too"),
        (Hosts(None, 2, 1), {}, "processes --coordinator must be given, too"),
        (Hosts(), {"PMI_SIZE": "3", "PMI_RANK": "2"}, "processes --coordinator must be given, too"),
        (Hosts(), TORCHRUN | {"MASTER_PORT": "x"}, "MASTER_PORT must be a whole number, got 'x'"),
        (Hosts("node1", 2, 0), {}, "--coordinator must be HOST:PORT, got 'node1'"),
        (Hosts("node1:12355", 2, 2), {}, r"--process-id must be from 0 to 1 \(--num-processes 2\), got 2"),
        (Hosts("node1:12355", 0, 0), {}, "--num-processes must be at least 1, got 0"),
        (Hosts(), JOB, r"the kubernetes package is missing: pip install 'jax\[k8s\]'.*--process-id"),
    ],
)
def test_what_does_not_fit_is_refused(joined, said, environment, message):
    with pytest.raises(InputError, match=message):
        join_hosts(said, 100, environment)
    assert joined == []


def test_a_tpu_is_asked_before_kubernetes(joined, monkeypatch):
    """The pods of a JobSet on GKE are an indexed job's; JAX needs no package to join those of a TPU slice."""
    monkeypatch.setattr(hosts.glob, "glob", lambda pattern: ["/dev/vfio/0"] if "vfio" in pattern else [])
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: object() if name == "libtpu" else None)
    join_hosts(Hosts(), 100, JOB)
    assert [who for who, _ in joined] == [(None, None, None)]


def test_others_that_do_not_come_are_one_line(joined, monkeypatch):
    def initialize(*who, **options):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody came\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match="cannot join the others: DEADLINE_EXCEEDED: nobody came$"):
        join_hosts(Hosts("node1:12355", 2, 0), 100, {})


def test_flags_are_taken_out_of_the_words():
    words = ["run.toml", "--coordinator", "a:1", "--seed", "3", "--num-processes=2", "--process-id", "1"]
    assert hosts_from_flags(words) == (Hosts("a:1", 2, 1), ["run.toml", "--seed", "3"])
    assert hosts_from_flags(["run.toml"]) == (Hosts(), ["run.toml"])
    with pytest.raises(InputError, match="--process-id must be a whole number, got 'one'"):
        hosts_from_flags(["--process-id", "one"])
