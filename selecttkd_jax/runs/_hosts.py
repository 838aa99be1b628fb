"""Several processes as one run: who they are, from flags or from what the launcher left in the environment.

JAX itself recognises SLURM, Open MPI, Kubernetes jobs and Cloud TPU pods. Here it is decided whether this is such a run
at all, and what JAX does not recognise is filled in: `torchrun`, launchers of the MPICH family, and which devices of a
machine belong to a process.
"""

import glob
import importlib.util
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from selecttkd_jax._errors import InputError
from selecttkd_jax.runs._meeting import meet, watch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Launcher:
    """The environment variables of one kind of launcher.

    Attributes:
        size: How many processes there are.
        rank: Which one this is.
        local_rank: Which one of those on this machine; the first that is set.
        one_each: Two variables that are equal where each machine has one process; the second may be a number.
        needed: What must be there, too.
        finds_coordinator: What must be there for JAX to find the first process by itself; None if it cannot.
    """

    size: str
    rank: str
    local_rank: tuple[str, ...]
    one_each: tuple[str, str]
    needed: str
    finds_coordinator: str | None


# The innermost first: in a SLURM allocation, torchrun is started by srun, and Open MPI starts its daemons with it, so
# that their processes have SLURM's variables, too, which then count the machines. A SLURM batch script has the first
# two without being one of several tasks; only `srun` sets the list of nodes.
_LAUNCHERS = (
    _Launcher(
        size="WORLD_SIZE",
        rank="RANK",
        local_rank=("LOCAL_RANK",),
        one_each=("LOCAL_WORLD_SIZE", "1"),
        needed="MASTER_ADDR",
        finds_coordinator="MASTER_ADDR",
    ),
    _Launcher(
        size="OMPI_COMM_WORLD_SIZE",
        rank="OMPI_COMM_WORLD_RANK",
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
        one_each=("OMPI_COMM_WORLD_LOCAL_SIZE", "1"),
        needed="OMPI_COMM_WORLD_SIZE",
        finds_coordinator="OMPI_MCA_orte_hnp_uri",  # up to version 4
    ),
    _Launcher(
        size="PMI_SIZE",
        rank="PMI_RANK",
        local_rank=("MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
        one_each=("MPI_LOCALNRANKS", "1"),
        needed="PMI_SIZE",
        finds_coordinator=None,
    ),
    _Launcher(
        size="SLURM_NTASKS",
        rank="SLURM_PROCID",
        local_rank=("SLURM_LOCALID",),
        one_each=("SLURM_STEP_NUM_NODES", "SLURM_NTASKS"),
        needed="SLURM_STEP_NODELIST",
        finds_coordinator="SLURM_STEP_NODELIST",
    ),
)


@dataclass(frozen=True)
class Hosts:
    """What was said about the processes of a run; None leaves a value to the environment.

    Attributes:
        coordinator: `host:port` of the first process, where all others report.
        num_processes: How many there are.
        process_id: Which one this is, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def join_hosts(
    hosts: Hosts, timeout: int, environment: Mapping[str, str] | None = None, *, connect_timeout: int = 300
) -> None:
    """Makes this process one of the run's, before anything else of JAX is used; alone, it does nothing.

    Args:
        hosts: What was said on the command line.
        timeout: Seconds without a sign of life after which a process counts as dead and all others stop.
        environment: The environment variables; those of the process if None.
        connect_timeout: Seconds to wait for the other processes.

    Raises:
        InputError: What was said does not fit together, or the other processes do not come in time.
    """
    environment = os.environ if environment is None else environment
    launcher = _launcher(hosts, environment)
    hosts = _completed(hosts, launcher, environment)
    if hosts.num_processes == 1 or not _is_cluster(hosts, environment):
        return
    if hosts.coordinator is not None and hosts.num_processes is not None and hosts.process_id is not None:
        watch(meet(hosts.coordinator, hosts.num_processes, hosts.process_id, connect_timeout), timeout)
    elif hosts != Hosts():
        logger.info("waiting for the other processes, at most %d s", connect_timeout)
    try:
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.num_processes,
            hosts.process_id,
            local_device_ids=_local_devices(hosts, launcher, environment),
            initialization_timeout=connect_timeout,
            heartbeat_timeout_seconds=timeout,
        )
    except (ValueError, RuntimeError, OSError) as error:
        if hosts == Hosts() and _has_tpu():
            logger.info("a TPU machine by itself: %s", _first_line(error))
            return
        raise InputError(f"this process cannot join the others: {_first_line(error)}") from error
    logger.info(
        "process %d of %d, %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def _launcher(hosts: Hosts, environment: Mapping[str, str]) -> _Launcher | None:
    """Who started this process; None if nobody did, or if the launcher counts other processes than was said."""
    for launcher in _LAUNCHERS:
        if {launcher.size, launcher.rank, launcher.needed} <= environment.keys():
            if launcher.size == "PMI_SIZE" and _is_sruns(environment):
                continue
            size, rank = _number(environment, launcher.size), _number(environment, launcher.rank)
            fits = hosts.num_processes in (None, size) and hosts.process_id in (None, rank)
            return launcher if fits else None
    return None


def _is_sruns(environment: Mapping[str, str]) -> bool:
    """Whether srun itself speaks PMI to its tasks (`--mpi=pmi2`): then SLURM's variables say the same, and more."""
    return all(
        environment[pmi] == environment.get(slurm)
        for pmi, slurm in (("PMI_SIZE", "SLURM_NTASKS"), ("PMI_RANK", "SLURM_PROCID"))
    )


def _completed(hosts: Hosts, launcher: _Launcher | None, environment: Mapping[str, str]) -> Hosts:
    """What was said, and the rest from the environment; raises InputError where they do not fit."""
    coordinator = hosts.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    count, index, found = hosts.num_processes, hosts.process_id, coordinator is not None
    if launcher is not None:
        count, index = _number(environment, launcher.size), _number(environment, launcher.rank)
        found = found or (launcher.finds_coordinator or "") in environment
        if coordinator is None and "MASTER_ADDR" in environment and launcher.needed == "MASTER_ADDR":
            # torchrun itself listens on its port.
            port = _number({"MASTER_PORT": "29500", **environment}, "MASTER_PORT") + 1
            coordinator = f"{environment['MASTER_ADDR']}:{port}"
    if count is not None and count < 1:
        raise InputError(f"--num-processes must be at least 1, got {count}")
    if count is not None and index is not None and not 0 <= index < count:
        raise InputError(f"--process-id must be from 0 to {count - 1} (--num-processes {count}), got {index}")
    if count == 1:
        return Hosts(coordinator, count, index)
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    if hosts != Hosts() or launcher is not None:
        known = {"--coordinator": found, "--num-processes": count is not None, "--process-id": index is not None}
        missing = " and ".join(flag for flag, is_known in known.items() if not is_known)
        if missing:
            raise InputError(
                f"{_said(hosts, launcher)} needs {missing}, too: nothing in the environment says it (--num-processes 1 "
                "for a run of its own)"
            )
    return Hosts(coordinator, count, index)


def _said(hosts: Hosts, launcher: _Launcher | None) -> str:
    """What was said about the processes, in the words it was said in."""
    flags = {"--coordinator": hosts.coordinator, "--num-processes": hosts.num_processes}
    flags["--process-id"] = hosts.process_id
    said = " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)
    return said or f"a run of several processes ({launcher.size if launcher else ''} in the environment)"


def _local_devices(hosts: Hosts, launcher: _Launcher | None, environment: Mapping[str, str]) -> list[int] | None:
    """The devices of this machine that are this process's: [] is all of them, None leaves it to JAX.

    JAX would give a process SLURM's local index wherever that is in the environment, even to one that has the machine
    to itself, and Open MPI's only up to version 4. With a list, be it empty, it asks nobody.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environment or (hosts.num_processes is None and launcher is None):
        return None
    if launcher is None:
        return []
    first, second = launcher.one_each
    if first in environment and environment[first] == environment.get(second, second):
        return []
    indices = [_number(environment, name) for name in launcher.local_rank if name in environment]
    return indices[:1]


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise InputError(f"{name} in the environment must be a whole number, got {environment[name]!r}") from None


def _is_cluster(hosts: Hosts, environment: Mapping[str, str]) -> bool:
    """Whether there are other processes to join."""
    if hosts.coordinator is not None or (hosts.num_processes or 1) > 1:
        return True
    # Before Kubernetes, whose package JAX does not need where the pods have a TPU.
    if _has_tpu() or "TPU_WORKER_HOSTNAMES" in environment:
        return True
    # An indexed job of Kubernetes; a pod by itself is none.
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        if importlib.util.find_spec("kubernetes") is None:
            raise InputError(
                "this is a pod of a Kubernetes job, but the kubernetes package is missing: pip install 'jax[k8s]', or "
                "say --coordinator HOST:PORT --num-processes N --process-id $JOB_COMPLETION_INDEX (--num-processes 1 "
                "for a run of its own)"
            )
        return True
    return False


def _has_tpu() -> bool:
    """Whether this is a TPU machine, which may be one of several: JAX asks the machine."""
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    found = bool(chips) and importlib.util.find_spec("libtpu") is not None
    if chips and not found and not glob.glob("/dev/nvidia[0-9]*"):
        logger.warning("%s may be a TPU, but libtpu is missing: pip install 'jax[tpu]' to train on it", chips[0])
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
