"""Who this process is among others: from flags, from what launchers leave in the environment, or nobody but itself."""

from types import SimpleNamespace
from unittest.mock import Mock

import jax
import pytest
from jax._src import distributed

from selecttkd_jax._errors import InputError
from selecttkd_jax.runs import Hosts, join_hosts
from selecttkd_jax.runs import _hosts as hosts

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
}
SLURM_ONE_A_NODE = SLURM | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
TORCHRUN = {
    "WORLD_SIZE": "16",
    "RANK": "11",
    "LOCAL_RANK": "3",
    "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
}
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_RANK": "11",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
}
OPEN_MPI_4 = OPEN_MPI_5 | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
MPICH = {"PMI_SIZE": "16", "PMI_RANK": "11", "MPI_LOCALRANKID": "3", "MPI_LOCALNRANKS": "8"}
JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
AT = "node1:12355"
TIMEOUTS = {"initialization_timeout": 300, "heartbeat_timeout_seconds": 60}


@pytest.fixture(autouse=True)
def met(monkeypatch):
    """All others are there."""
    monkeypatch.setattr(hosts, "meet", lambda *who: {})
    monkeypatch.setattr(hosts, "watch", lambda *connections: None)


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
        (Hosts(AT, 2, 0), {}, (AT, 2, 0), []),
        (Hosts(AT, 2, 0), SLURM, (AT, 2, 0), []),  # SLURM counts something else
        (Hosts(AT, 16, 9), SLURM, (AT, 16, 9), [1]),
        (Hosts(AT), SLURM, (AT, 16, 9), [1]),
        (Hosts(), SLURM, (None, 16, 9), [1]),
        (Hosts(), SLURM | {"PMI_SIZE": "16", "PMI_RANK": "9"}, (None, 16, 9), [1]),  # srun --mpi=pmi2
        (Hosts(AT), OPEN_MPI_5, (AT, 16, 11), [3]),
        (Hosts(), OPEN_MPI_4, (None, 16, 11), [3]),
        (Hosts(AT), MPICH, (AT, 16, 11), [3]),
        (Hosts(AT), {"PMI_SIZE": "3", "PMI_RANK": "2", "PMI_LOCAL_RANK": "1"}, (AT, 3, 2), [1]),
        (Hosts(), TORCHRUN, ("node1:29401", 16, 11), [3]),
        (Hosts(), {"JAX_COORDINATOR_ADDRESS": AT} | OPEN_MPI_5, (AT, 16, 11), [3]),
        (Hosts(), TORCHRUN | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, ("node1:29401", 16, 11), None),
    ],
)
def test_who_is_who(joined, said, environment, who, local):
    join_hosts(said, 60, environment)
    assert joined == [(who, {"local_device_ids": local, **TIMEOUTS})]


@pytest.mark.parametrize(
    "said, inner, who",
    [
        (Hosts(), TORCHRUN, ("node1:29401", 16, 11)),
        (Hosts(), OPEN_MPI_4, (None, 16, 11)),
        (Hosts(AT), OPEN_MPI_5, (AT, 16, 11)),
        (Hosts(AT), MPICH, (AT, 16, 11)),
    ],
)
def test_the_innermost_launcher_says_who_is_who(joined, said, inner, who):
    """Started by srun, one a node, and themselves starting eight processes there."""
    join_hosts(said, 60, SLURM_ONE_A_NODE | inner)
    assert joined == [(who, {"local_device_ids": [3], **TIMEOUTS})]


@pytest.mark.parametrize(
    "said, environment",
    [
        (Hosts(), SLURM_ONE_A_NODE),
        (Hosts("node1:12355", 2, 1), SLURM_ONE_A_NODE),
        (Hosts(), TORCHRUN | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}),
        (Hosts(AT), OPEN_MPI_5 | {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}),
        (Hosts(AT), MPICH | {"MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}),
    ],
)
def test_one_process_a_machine_has_all_its_devices(joined, said, environment):
    join_hosts(said, 60, environment)
    assert joined[0][1]["local_device_ids"] == []


@pytest.mark.parametrize(
    "local, visible",
    [(OPEN_MPI_5, ["3"]), (OPEN_MPI_5 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []), (SLURM_ONE_A_NODE, [])],
)
def test_jax_takes_the_devices_it_is_told(monkeypatch, local, visible):
    """All of JAX but the connection: what it makes of an empty list, whichever launcher it could ask itself."""
    client = SimpleNamespace(connect=lambda: None)
    made = SimpleNamespace(get_distributed_runtime_client=lambda *_, **__: client, create_preemption_sync_manager=Mock)
    monkeypatch.setattr("jax._src.distributed._jax", made)
    monkeypatch.setattr(jax.distributed, "initialize", distributed.State().initialize)
    updates = []
    monkeypatch.setattr("jax._src.config.update", lambda name, value: updates.append((name, value)))
    for name, value in (SLURM_ONE_A_NODE | local).items():
        monkeypatch.setenv(name, value)
    join_hosts(Hosts(AT), 60)
    assert [value for name, value in updates if name == "jax_cuda_visible_devices"] == visible


@pytest.mark.parametrize(
    "said, environment, message",
    [
        (Hosts(AT), {}, "^--coordinator node1:12355 needs --num-processes and --process-id, too: nothing in the env"),
        (Hosts(AT, 2), {}, "^--coordinator node1:12355 --num-processes 2 needs --process-id, too"),
        (Hosts(process_id=1), {}, "^--process-id 1 needs --coordinator and --num-processes, too"),
        (Hosts(num_processes=2), {}, "^--num-processes 2 needs --coordinator and --process-id, too"),
        (Hosts(num_processes=2), SLURM, "^--num-processes 2 needs --coordinator and --process-id, too"),
        (Hosts(None, 2, 1), {}, "^--num-processes 2 --process-id 1 needs --coordinator, too"),
        (Hosts(None, 1, 1), {}, r"--process-id must be from 0 to 0 \(--num-processes 1\), got 1"),
        (
            Hosts(),
            OPEN_MPI_5,
            r"several processes \(OMPI_COMM_WORLD_SIZE in the environment\) needs --coordinator, too",
        ),
        (Hosts(), MPICH, r"several processes \(PMI_SIZE in the environment\) needs --coordinator, too"),
        (Hosts(), TORCHRUN | {"MASTER_PORT": "x"}, "MASTER_PORT in the environment must be a whole number, got 'x'"),
        (Hosts(), TORCHRUN | {"RANK": ""}, "RANK in the environment must be a whole number, got ''"),
        (Hosts("node1", 2, 0), {}, "--coordinator must be HOST:PORT, got 'node1'"),
        (Hosts("node1:http", 2, 0), {}, "--coordinator must be HOST:PORT, got 'node1:http'"),
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
    """The pods of a JobSet are those of an indexed job, too; JAX needs no kubernetes package for them."""
    join_hosts(Hosts(), 60, JOB | {"TPU_WORKER_HOSTNAMES": "a,b"})
    monkeypatch.setattr(hosts.glob, "glob", lambda pattern: ["/dev/vfio/0"] if "vfio" in pattern else [])
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: object() if name == "libtpu" else None)
    join_hosts(Hosts(), 60, JOB)
    join_hosts(Hosts(), 60, {})
    assert joined == 3 * [((None, None, None), {"local_device_ids": None, **TIMEOUTS})]


@pytest.mark.parametrize("others, warned", [([], True), (["/dev/nvidia0"], False)])
def test_a_tpu_that_cannot_be_used_is_mentioned(joined, monkeypatch, caplog, others, warned):
    devices = {"/dev/accel[0-9]*": ["/dev/accel0"], "/dev/nvidia[0-9]*": others}
    monkeypatch.setattr(hosts.glob, "glob", lambda pattern: devices.get(pattern, []))
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: None)
    join_hosts(Hosts(), 60, {})
    assert joined == [] and ("/dev/accel0 may be a TPU, but libtpu is missing" in caplog.text) == warned


def test_others_that_do_not_come_are_one_line(joined, monkeypatch):
    def initialize(*who, **options):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody came\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match="cannot join the others: DEADLINE_EXCEEDED: nobody came$"):
        join_hosts(Hosts("node1:12355", 2, 0), 100, {})
