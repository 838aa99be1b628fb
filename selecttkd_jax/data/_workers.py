"""Work in several processes: items go out over pipes, and what is made of them comes back in their order.

Each process is a program of its own. A fork would copy a process in which JAX has threads, whose locks nobody in the
copy releases; and `multiprocessing` starts a process by running the caller's script again, which a script has to be
written for.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from selecttkd_jax._errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_PROGRAM = "from selecttkd_jax.data._workers import serve; serve()"
# Of processes that nobody asked for: each takes memory for the libraries and a tokenizer.
_MOST = 8


def count_workers(work: int, worth: int) -> int:
    """One process for each core, at most eight; one alone for less work than it is worth starting them for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if work < worth or not sys.executable else min(cores, _MOST)


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """`map(function, items)`, by so many processes where there are more than one.

    Args:
        function: Can be pickled, and so can what it is given, what it returns, and the InputError that it raises.
        items: Each is work for a second or so.
        workers: How many processes.

    Raises:
        InputError: What `function` raised, or a process ended before its time.
        RuntimeError: `function` raised anything else; with the traceback.
    """
    if workers == 1:
        yield from map(function, items)
        return
    program = pickle.dumps(function)
    processes = [_start() for _ in range(workers)]
    idle: queue.SimpleQueue[tuple[Any, bytes]] = queue.SimpleQueue()
    for process in processes:
        idle.put((process, program))

    def ask(item: Item) -> Result:
        process, unsent = idle.get()
        try:
            return _ask(process, unsent, item)
        finally:
            idle.put((process, b""))

    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(ask, items)
    finally:
        # First the processes: whoever waits for one of them then waits no more.
        for process in processes:
            process.kill()
        pool.shutdown(cancel_futures=True)
        for process in processes:
            process.communicate()


def serve() -> None:
    """What a process does: reads a function and items from its input, and writes what comes of them, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent ends its processes itself
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what others print is not an answer
    function = pickle.load(inbox)
    while True:
        try:
            item = pickle.load(inbox)
        except EOFError:
            return
        try:
            answer: Any = (None, function(item))
        except InputError as error:
            answer = (error, None)
        except Exception:
            answer = (RuntimeError(traceback.format_exc()), None)
        outbox.write(pickle.dumps(answer))
        outbox.flush()


def _start() -> Any:
    # It finds what its parent finds, computes nothing with JAX, and leaves the other cores to the other processes.
    here = {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **here}
    )


def _ask(process: Any, unsent: bytes, item: Any) -> Any:
    try:
        process.stdin.write(unsent + pickle.dumps(item))
        process.stdin.flush()
        error, result = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        raise InputError(
            f"a process that makes rows ended before its time (exit code {process.wait()}), perhaps for lack of "
            "memory; data.workers = 1 makes them in this process"
        ) from None
    if error is not None:
        raise error
    return result
