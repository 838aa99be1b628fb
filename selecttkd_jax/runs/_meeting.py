"""The processes of a run find each other before JAX is asked to join them, and tell each other when one is gone.

JAX waits for missing processes without a word, and what it says of wrong ones is a dump of its stack. So process 0
listens at the coordinator's port first: everyone else tells it who they are, it says who is missing, refuses what does
not fit, and hands the port over to JAX once all are there. The connections stay: where one breaks, a process died.
"""

import atexit
import contextlib
import errno
import json
import logging
import os
import selectors
import socket
import sys
import threading
import time

from selecttkd_jax._errors import InputError

logger = logging.getLogger(__name__)

_GO, _ALIVE, _BYE = b"go\n", b".", b"bye\n"
# Seconds between two tries to connect, between two lines that say who is waited for, and for a line to arrive.
_RETRY, _REMIND, _ANSWER = 0.5, 30.0, 10.0
# The share of JAX's own patience after which a silent process is given up.
_PATIENCE = 0.8


Connections = dict[int, socket.socket]
"""To other processes, by their numbers."""


def meet(coordinator: str, count: int, index: int, timeout: float) -> Connections:
    """Waits until all processes of a run have reported to the first one.

    Args:
        coordinator: `host:port`, where process 0 listens.
        count: How many processes there are.
        index: Which one this is.
        timeout: Seconds to wait for the others.

    Returns:
        Of process 0 the connections to all others, of any other the one to process 0.

    Raises:
        InputError: They did not come in time, two say they are the same one, or the port is not to be had.
    """
    host, _, port = coordinator.rpartition(":")
    if not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator {coordinator}: a port is a number from 1 to 65535")
    deadline = time.monotonic() + timeout
    if index == 0:
        return _gather(int(port), count, deadline, timeout)
    return {0: _report(host.strip("[]"), int(port), count, index, deadline, timeout)}


def watch(connections: Connections, timeout: float) -> None:
    """Ends this process, with a line, where another one is gone or silent; by a thread.

    Args:
        connections: From `meet`.
        timeout: Seconds without a sign of life after which JAX takes a process for dead; here it is a little less, for
            JAX then ends the process in its own way.
    """
    atexit.register(leave, connections)
    threading.Thread(target=_watch, args=(connections, _PATIENCE * timeout), name="hosts", daemon=True).start()


def leave(connections: Connections) -> None:
    """Tells the others that this process ends as it should."""
    for connection in connections.values():
        with contextlib.suppress(OSError):
            connection.sendall(_BYE)


def _watch(connections: Connections, timeout: float) -> None:
    heard = dict.fromkeys(connections, time.monotonic())
    with selectors.DefaultSelector() as selector:
        for number, connection in connections.items():
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, number)
        while heard:
            for key, _ in selector.select(min(timeout / 8, 10.0)):
                try:
                    said = connections[key.data].recv(1000)
                except OSError:
                    said = b""
                if not said:
                    _stop(f"process {key.data} of this run is gone")
                heard[key.data] = time.monotonic()
                if _BYE in said:
                    selector.unregister(connections[key.data])
                    del heard[key.data]
            for number, last in heard.items():
                if time.monotonic() - last > timeout:
                    _stop(f"process {number} of this run is silent for {timeout:.0f} s (mesh.host_timeout)")
                with contextlib.suppress(OSError):
                    connections[number].send(_ALIVE)


def _stop(why: str) -> None:
    line = f"selecttkd: error: {why}, and this one stops: start all of them again to resume from the last checkpoint"
    print(line, file=sys.stderr, flush=True)
    os._exit(1)


def _gather(port: int, count: int, deadline: float, timeout: float) -> Connections:
    """Process 0: accepts the others."""
    try:
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "is not open to this user"
        raise InputError(
            f"port {port} of --coordinator {why} on this machine: choose another one, or see whether a process 0 of "
            "this or another run is still there"
        ) from error
    there: Connections = {}
    reminded = -_REMIND
    with listener:
        while len(there) < count - 1:
            missing = [number for number in range(1, count) if number not in there]
            if time.monotonic() > deadline:
                for connection in there.values():
                    connection.close()
                raise InputError(
                    f"{_name(missing, count)} did not come within {timeout:.0f} s (--connect-timeout); see that each "
                    "of them was started with this --coordinator and --num-processes"
                )
            if time.monotonic() - reminded >= _REMIND:
                reminded = time.monotonic()
                logger.info("waiting for %s, at most %.0f s", _name(missing, count), deadline - time.monotonic())
            listener.settimeout(_RETRY)
            try:
                connection, address = listener.accept()
            except TimeoutError:
                there = {number: one for number, one in there.items() if not _is_closed(one)}
                continue
            there = {number: one for number, one in there.items() if not _is_closed(one)}
            number, refusal = _read_hello(connection, count, there)
            if number is None:
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps({"refused": refusal}).encode() + b"\n")
                connection.close()
                logger.warning("refused a process at %s: %s", address[0], refusal)
            else:
                there[number] = connection
    # The port is free again, for JAX.
    for connection in there.values():
        with contextlib.suppress(OSError):
            connection.sendall(_GO)
    return there


def _read_hello(connection: socket.socket, count: int, there: Connections) -> tuple[int | None, str]:
    """Which process reports, or None and why it is none of this run."""
    connection.settimeout(_ANSWER)
    try:
        said = json.loads(_read_line(connection))
        index, of = int(said["process"]), int(said["of"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, "it is no process of selecttkd"
    if of != count:
        return None, f"--num-processes is {count} of process 0, and {of} here"
    if index in there:
        return None, f"another process has --process-id {index} already"
    return index, ""


def _report(host: str, port: int, count: int, index: int, deadline: float, timeout: float) -> socket.socket:
    """Any other process: tells process 0 who it is, and waits until all are there."""
    reminded = -_REMIND
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=_ANSWER)
        except OSError as error:
            unknown = isinstance(error, socket.gaierror)
            why = f"the host {host} is not known" if unknown else (error.strerror or str(error)).lower()
            if time.monotonic() > deadline:
                raise InputError(
                    f"process 0 was not found at {host}:{port} within {timeout:.0f} s ({why}); see that it was "
                    "started, and that --coordinator names its host"
                ) from error
            if time.monotonic() - reminded >= _REMIND:
                reminded = time.monotonic()
                left = deadline - time.monotonic()
                logger.warning("waiting for process 0 at %s:%d, at most %.0f s (%s)", host, port, left, why)
            time.sleep(_RETRY)
            continue
        connection.settimeout(max(deadline - time.monotonic(), 0.0) + _ANSWER)
        try:
            connection.sendall(json.dumps({"process": index, "of": count}).encode() + b"\n")
            said = _read_line(connection)
        except OSError:
            said = b""
        if said == _GO:
            return connection
        connection.close()
        if said:
            raise InputError(_refusal(said, host, port))
        if time.monotonic() > deadline:
            raise InputError(f"not all of the {count} processes came within {timeout:.0f} s; process 0 says which")
        time.sleep(_RETRY)  # process 0 has ended, and may be started again


def _refusal(said: bytes, host: str, port: int) -> str:
    try:
        return f"process 0 refuses this process: {json.loads(said)['refused']}"
    except (ValueError, KeyError, TypeError):
        return f"what answers at {host}:{port} is no process 0 of selecttkd; choose another port for --coordinator"


def _read_line(connection: socket.socket) -> bytes:
    """One line of at most some hundred bytes, and nothing after it."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 1000:
        if not (byte := connection.recv(1)):
            return b""
        line += byte
    return line


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _name(missing: list[int], count: int) -> str:
    """`process 1 of 2`, `processes 1, 3 and 14 others of 32`."""
    shown = ", ".join(map(str, missing[:5]))
    more = f" and {len(missing) - 5} others" if len(missing) > 5 else ""
    return f"process{'es' if len(missing) > 1 else ''} {shown}{more} of {count}"
