"""Whether all processes of a run were asked for the same, before any of them computes or writes."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from selecttkd_jax._errors import InputError


def check_agreement(facts: Mapping[str, int | None]) -> None:
    """Waits for the other processes, and raises InputError in all of them unless they know the same `facts`.

    Processes that differ would run on with different programs or rows, and give wrong numbers or hang.

    Args:
        facts: Numbers (0 to 2^32 - 2, or None) by what they are, in the same order everywhere. The names are this
            process's own, and may say more.
    """
    if jax.process_count() == 1:
        return
    own = [2**32 - 1 if fact is None else fact for fact in facts.values()]
    numbers = multihost_utils.process_allgather(np.array(own, np.uint32))
    differing = [
        f"{name} (process {', '.join(map(str, others))})"
        for name, column in zip(facts, numbers.T, strict=True)
        if len(others := np.flatnonzero(column != column[0]))
    ]
    if differing:
        raise InputError(
            f"the hosts do not agree with process 0 about {'; '.join(differing)}; this is process "
            f"{jax.process_index()}: start all of them with one configuration, on storage that all of them see"
        )
