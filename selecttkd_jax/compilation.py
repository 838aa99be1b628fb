"""Compiling a program before it runs, so that its time and its memory are its own, and once for all processes."""

import contextlib
import ctypes
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import cache_directory, expand_home

logger = logging.getLogger(__name__)

# Bytes of kept programs; then those that were not used for longest go.
_KEPT = 4 * 2**30
# The folder that `keep_programs` has named.
_ours: str | None = None


def keep_programs(folder: str | None = None) -> None:
    """Keeps what is compiled from now on, and takes from there what was: JAX's persistent compilation cache.

    A program that took over a second to compile is kept, up to 4 GiB of them. Where JAX was told of a folder by its own
    option or by JAX_COMPILATION_CACHE_DIR, that one stays; JAX_ENABLE_COMPILATION_CACHE=0 keeps none.

    Args:
        folder: Where; `off` is nowhere. None: `selecttkd_jax` in the user's cache directory ($XDG_CACHE_HOME, else
            ~/.cache), and nowhere where several processes run: they need not see the same one, and while some of them
            compile, and measure kernels for all, another one would have read its program and not answer.
    """
    global _ours
    if jax.config.values["jax_compilation_cache_dir"] != _ours:
        return
    path = None
    if folder != "off" and (folder is not None or jax.process_count() == 1):
        try:
            path = cache_directory() if folder is None else expand_home(folder)
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, InputError) as error:
            logger.warning("compiled programs are not kept: %s", error)
            path = None
    if (None if path is None else str(path)) == _ours:
        return
    _ours = None if path is None else str(path)
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", _ours)
    # With a limit JAX locks the folder, so that processes may share it.
    jax.config.update("jax_compilation_cache_max_size", _KEPT)
    # JAX looks for a folder once, at the first program that it compiles.
    compilation_cache.reset_cache()


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

    Raises:
        InputError: The compiler has no such option as the function was given.
    """
    started = time.perf_counter()
    with refused_options():
        compiled = function.lower(*arguments, **options).compile()
    _give_back_freed_memory()
    stats = compiled.memory_analysis()
    temporary = "" if stats is None else f"; its temporary arrays take {stats.temp_size_in_bytes / 2**20:,.0f} MiB"
    logger.info("compiled in %.0f s%s", time.perf_counter() - started, temporary)
    return compiled


def check_options(options: Mapping[str, str | bool]) -> None:
    """Raises InputError where this process's compiler does not take them, by the smallest program there is."""
    if options:
        with refused_options():
            jax.jit(lambda x: x + 1, compiler_options=dict(options)).lower(0.0).compile()


@contextlib.contextmanager
def refused_options() -> Iterator[None]:
    """Says in a user's words which compiler option there is not, or which value it does not take."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        words = str(error).splitlines()[0]
        if "No such compile option" in words or "While setting option" in words:
            raise InputError(f"the compiler refuses an option (mesh.xla_flags): {words.partition(': ')[2]}") from None
        raise


def compile_on_first_call(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step, compiled by `compile_ahead` when it is first called with arguments of their shapes."""
    compiled: set[Any] = set()

    def call(*arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tree, tuple(jnp.shape(leaf) for leaf in leaves)
        if shapes not in compiled:
            compile_ahead(step, *arguments)
            compiled.add(shapes)
        return step(*arguments)

    return call


def _give_back_freed_memory() -> None:
    """Asks the C library for it: glibc keeps what a compiler's many threads have freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
