"""Several processes as one run: who they are, from flags or from what the launcher left in the environment.

JAX itself recognises SLURM, Open MPI, Kubernetes jobs and Cloud TPU pods. Here it is decided whether this is such a run
at all, and what JAX does not recognise is filled in: `torchrun` and launchers of the MPICH family.
"""

import glob
import importlib.util
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from selecttkd_jax.checks import InputError

logger = logging.getLogger(__name__)


class _Launcher(NamedTuple):
    """The variables of a launcher: how many processes, which one, which on its machine, and what must be there, too."""

    size: str
    rank: str
    local_rank: tuple[str, ...]
    needed: str
    has_coordinator: bool  # whether JAX or we can tell who the first process is


# The innermost first: torchrun may have been started by srun, and Open MPI starts its daemons with it. A SLURM batch
# script has a size and a rank without being one of several tasks; only `srun` sets the node list of a step.
_LAUNCHERS = (
    _Launcher("WORLD_SIZE", "RANK", ("LOCAL_RANK",), "MASTER_ADDR", True),
    _Launcher(
        "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_LOCAL_RANK",), "OMPI_COMM_WORLD_SIZE", True
    ),
    _Launcher("PMI_SIZE", "PMI_RANK", ("MPI_LOCALRANKID", "PMI_LOCAL_RANK"), "PMI_SIZE", False),
    _Launcher("SLURM_NTASKS", "SLURM_PROCID", ("SLURM_LOCALID",), "SLURM_STEP_NODELIST", True),
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
    try:
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.num_processes,
            hosts.process_id,
            local_device_ids=_local_devices(environment),
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
    launcher = _launcher(environment)
    if launcher is not None:
        count = _number(environment, launcher.size) if count is None else count
        index = _number(environment, launcher.rank) if index is None else index
    if count == 1:
        return Hosts(coordinator, count, index)
    if coordinator is None and launcher is not None and launcher.needed == "MASTER_ADDR":
        # torchrun itself listens on its port.
        port = _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else 29500
        coordinator = f"{environment['MASTER_ADDR']}:{port + 1}"
    known = launcher is not None and launcher.has_coordinator or "JAX_COORDINATOR_ADDRESS" in environment
    if hosts != Hosts() or launcher is not None:
        said = {"--coordinator": coordinator or known, "--num-processes": count, "--process-id": index}
        missing = [flag for flag, value in said.items() if value is None or value is False]
        if missing:
            raise InputError(
                f"to join other processes {' and '.join(missing)} must be given, too: no launcher says it in the "
                "environment (--num-processes 1 for a run of its own)"
            )
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
    if _has_tpu():
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


def _launcher(environment: Mapping[str, str]) -> _Launcher | None:
    """What started this process as one of several, if anything did."""
    return next((one for one in _LAUNCHERS if {one.size, one.rank, one.needed} <= environment.keys()), None)


def _local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Which of the machine's devices are this process's: its own of one process a device, or all (None).

    Said here and not left to JAX, which knows the local ranks of SLURM and Open MPI 4 alone, and takes a single task
    on a node for one that wants a single device.
    """
    launcher = _launcher(environment)
    if launcher is None:
        return None
    if launcher.size == "SLURM_NTASKS" and re.fullmatch(
        r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    ):
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        count = len(glob.glob("/dev/nvidia[0-9]*")) if visible is None else len(visible.split(","))
        return list(range(count)) or None
    return next(([_number(environment, name)] for name in launcher.local_rank if name in environment), None)


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise InputError(f"the environment's {name} must be a whole number, got {environment[name]!r}") from None


def _has_tpu() -> bool:
    """Whether this is a TPU machine, which may be one of several: JAX asks the machine."""
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
