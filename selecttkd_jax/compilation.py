"""Compiling a program before it runs, so that its time and its memory are its own."""

import ctypes
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

logger = logging.getLogger(__name__)


def compile_ahead(function: Any, *arguments: Any, **options: Any) -> jax.stages.Compiled:
    """Compiles a jitted function for these arguments; calling it with such arguments compiles nothing more.

    What the compiler has used and freed goes back to the system: of a training step of 135 M parameters on a CPU, more
    than 200 MiB that would otherwise stay beside its arrays.

    Args:
        function: What `jax.jit` has returned.
        *arguments: As for a call; nothing is computed or donated.
        **options: The same, by name.

    Returns:
        The program, with its `memory_analysis()`.
    """
    started = time.perf_counter()
    compiled = function.lower(*arguments, **options).compile()
    _give_back_freed_memory()
    stats = compiled.memory_analysis()
    temporary = "" if stats is None else f"; its temporary arrays take {stats.temp_size_in_bytes / 2**20:,.0f} MiB"
    logger.info("compiled in %.0f s%s", time.perf_counter() - started, temporary)
    return compiled


def compile_on_first_call(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step, compiled by `compile_ahead` when it is first called."""
    compiled = False

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if not compiled:
            compile_ahead(step, *arguments)
            compiled = True
        return step(*arguments)

    return call


def _give_back_freed_memory() -> None:
    """Asks the C library for it: glibc keeps what a compiler's many threads have freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
