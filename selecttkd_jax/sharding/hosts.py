"""Several processes as one run: who they are, from flags or from what the launcher left in the environment.

JAX itself recognises SLURM, Open MPI, Kubernetes jobs and Cloud TPU pods. Here it is decided whether this is such a run
at all, and what JAX does not recognise is filled in: `torchrun` and launchers of the MPICH family.
"""

import glob
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from selecttkd_jax.checks import InputError

logger = logging.getLogger(__name__)

# By launcher: how many processes there are, which one this is, and what must be there, too. A SLURM batch script has
# the first two without being one of several tasks; only `srun` sets the third.
_LAUNCHERS = (
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_SIZE", "PMI_RANK", "PMI_SIZE"),
    ("WORLD_SIZE", "RANK", "MASTER_ADDR"),
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


def join_hosts(hosts: Hosts, timeout: int, environment: Mapping[str, str] | None = None) -> None:
    """Makes this process one of the run's, before anything else of JAX is used; alone, it does nothing.

    Args:
        hosts: What was said on the command line.
        timeout: Seconds without a sign of life after which a process counts as dead and all others stop.
        environment: The environment variables; those of the process if None.

    Raises:
        InputError: What was said does not fit together, or the other processes do not come within five minutes.
    """
    environment = os.environ if environment is None else environment
    hosts = _completed(hosts, environment)
    if hosts.num_processes == 1 or not _is_cluster(hosts, environment):
        return
    local = environment.get("LOCAL_RANK")
    try:
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.num_processes,
            hosts.process_id,
            # torchrun starts one process a GPU; under SLURM and Open MPI, JAX finds its GPU by itself.
            local_device_ids=None if local is None else [int(local)],
            heartbeat_timeout_seconds=timeout,
        )
    except (ValueError, RuntimeError, OSError) as error:
        if hosts == Hosts() and _has_tpu():
            logger.info("a TPU machine by itself: %s", _first_line(error))
            return
        raise InputError(f"this process cannot join the others: {_first_line(error)}") from error
    logger.info(
        "process %d of %d, %d of %d devices",
        *(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count()),
    )


def hosts_from_flags(words: Sequence[str]) -> tuple[Hosts, list[str]]:
    """What `--coordinator`, `--num-processes` and `--process-id` say, and the words that are left."""
    kinds = {"--coordinator": str, "--num-processes": int, "--process-id": int}
    said: dict[str, Any] = {}
    rest: list[str] = []
    left = iter(words)
    for word in left:
        flag, equals, value = word.partition("=")
        if flag not in kinds:
            rest.append(word)
            continue
        value = value if equals else next(left, "")
        try:
            said[flag.strip("-").replace("-", "_")] = kinds[flag](value)
        except ValueError:
            raise InputError(f"{flag} must be a whole number, got {value!r}") from None
    return Hosts(**said), rest


def _completed(hosts: Hosts, environment: Mapping[str, str]) -> Hosts:
    """What was said, and the rest from the environment; raises InputError where they do not fit."""
    count, index, coordinator = hosts.num_processes, hosts.process_id, hosts.coordinator
    for size, rank, needed in _LAUNCHERS:
        if {size, rank, needed} <= environment.keys():
            count = int(environment[size]) if count is None else count
            index = int(environment[rank]) if index is None else index
            break
    if count == 1:
        return Hosts(coordinator, count, index)
    if coordinator is None and "WORLD_SIZE" in environment and "MASTER_ADDR" in environment:
        # torchrun itself listens on its port.
        coordinator = f"{environment['MASTER_ADDR']}:{int(environment.get('MASTER_PORT', '29500')) + 1}"
    if hosts != Hosts() and coordinator is not None and (count is None or index is None):
        missing = "--num-processes" if count is None else "--process-id"
        raise InputError(f"--coordinator {coordinator} needs {missing}, too: no launcher says it in the environment")
    if coordinator is not None and ":" not in coordinator:
        raise InputError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    if count is not None and count < 1:
        raise InputError(f"--num-processes must be at least 1, got {count}")
    if count is not None and index is not None and not 0 <= index < count:
        raise InputError(f"--process-id must be from 0 to {count - 1} (--num-processes {count}), got {index}")
    return Hosts(coordinator, count, index)


def _is_cluster(hosts: Hosts, environment: Mapping[str, str]) -> bool:
    """Whether there are other processes to join."""
    if hosts.coordinator is not None or (hosts.num_processes or 1) > 1:
        return True
    if "JAX_COORDINATOR_ADDRESS" in environment:
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
    return _has_tpu()


def _has_tpu() -> bool:
    """Whether this is a TPU machine, which may be one of several: JAX asks the machine."""
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
