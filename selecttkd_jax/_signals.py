"""SIGTERM and SIGINT, which schedulers and people send: what is at hand is finished and saved, then the program ends.

Python runs a signal's handler between two of its own instructions, and not while a compiler or a device is waited for.
So a thread reads the signals, too, as they come: it says that the first one was heard, and leaves at the second.
Nothing here needs JAX, unless there are several processes.
"""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

_HEARD = (signal.SIGTERM, signal.SIGINT)
# Launchers pass a signal on that the whole group had already: within so many seconds, two are one.
_ECHO = 0.5


class Interrupted(KeyboardInterrupt):
    """The process, or another one of its run, was told to end.

    Args:
        signum: The signal; 128 and it are the exit code.
        kept: What is on disk, in a sentence, where something is known of it.
        agreed: Whether all processes of the run end here.
    """

    def __init__(self, signum: int = signal.SIGINT, kept: str = "", *, agreed: bool = False):
        super().__init__(f"{signal.Signals(signum).name}{f': {kept}' if kept else ''}")
        self.signum = signum
        self.kept = kept
        self.agreed = agreed


class Signals:
    """What the process was told. Not opened, or opened in another thread than the first, it hears nothing.

    A signal raises `Interrupted` where the program is, unless it is within `deferred`; a second one ends the process.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.opened = False
        self._deferred = False
        self._shared = False
        self._notify: Callable[[int], Any] | None = None

    def share(self) -> None:
        """From here on a signal to one process of a run stops all of them, after the same step.

        JAX's own handler tells the others of a SIGTERM; ours takes its place and calls it, for either signal.
        """
        import jax

        self._shared = jax.process_count() > 1 and getattr(jax.config, "jax_enable_preemption_service", True)
        if not self._shared or self._notify is not None or threading.current_thread() is not threading.main_thread():
            return
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        theirs = libc.signal(int(signal.SIGTERM), None)
        self._notify = ctypes.CFUNCTYPE(None, ctypes.c_int)(theirs) if theirs else None
        for signum in _HEARD:
            signal.signal(signum, self._handle)

    def reached(self, step: int) -> bool:
        """Whether to end after this step; every process has to ask, at every step.

        Of several processes all are told the same: the first step that none of them had begun when they were told.
        """
        if not self._shared:
            return self.received is not None
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def stop(self, kept: str) -> Interrupted:
        """What to raise, once all is saved."""
        return Interrupted(self.received or signal.SIGTERM, kept, agreed=self._shared)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal waits until it is asked for (`reached`), or until the end."""
        with self._set_deferred(True):
            yield
        if self.received is not None and not self._deferred:
            raise Interrupted(self.received)

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Within, and within `deferred`, a signal raises after all: here is nothing that could not be made again.

        Not of several processes, of which the others would wait for this one.
        """
        if self._shared:
            yield
            return
        with self._set_deferred(False):
            if self.received is not None:
                raise Interrupted(self.received)
            yield

    @contextlib.contextmanager
    def _set_deferred(self, value: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, value
        try:
            yield
        finally:
            self._deferred = before

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return  # the thread sees to it
        self.received = signum
        if self._notify is not None:
            self._notify(int(signal.SIGTERM))
        if not self._deferred:
            raise Interrupted(signum)

    def _listen(self, read: int) -> None:
        """The thread: says what was heard, and leaves at a second signal."""
        first: float | None = None
        while numbers := os.read(read, 1):
            if (signum := numbers[0]) not in _HEARD:
                continue
            if first is None:
                first = time.monotonic()
                if self._deferred:
                    name = signal.Signals(signum).name
                    logger.warning(
                        "%s: ends after what is at hand, with all of it saved; a second one leaves at once", name
                    )
            elif time.monotonic() - first > _ECHO:
                print(f"selecttkd: a second {signal.Signals(signum).name}: left at once", file=sys.stderr, flush=True)
                os._exit(128 + signum)


_open: Signals | None = None


def share_signals() -> None:
    """Once JAX has joined several processes, and put its own handler of SIGTERM in the place of ours: see `share`."""
    if _open is not None:
        _open.share()


@contextlib.contextmanager
def open_signals() -> Iterator[Signals]:
    """Hears SIGTERM and SIGINT until the end; within another one, it is the same."""
    global _open
    if _open is not None or threading.current_thread() is not threading.main_thread():
        yield _open if _open is not None and threading.current_thread() is threading.main_thread() else Signals()
        return
    signals = Signals()
    signals.opened = True
    read, write = os.pipe()
    os.set_blocking(write, False)
    thread = threading.Thread(target=signals._listen, args=(read,), name="signals", daemon=True)
    thread.start()
    handlers = {signum: signal.signal(signum, signals._handle) for signum in _HEARD}
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    _open = signals
    try:
        yield signals
    finally:
        _open = None
        signal.set_wakeup_fd(before)
        for signum, handler in handlers.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        os.close(write)
        thread.join()
        os.close(read)
