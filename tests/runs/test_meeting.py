"""Processes that find each other at a port: threads here, which is the same to a socket."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.runs._meeting import meet

pytestmark = pytest.mark.one_stack


@pytest.fixture
def at():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return f"localhost:{found.getsockname()[1]}"


def meet_all(at, said, timeout=5.0):
    """What becomes of processes that say `(count, index)`: their connections, or what they are told."""

    def one(count, index):
        try:
            return meet(at, count, index, timeout)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(len(said)) as pool:
        futures = []
        for count, index in said:
            futures.append(pool.submit(one, count, index))
            time.sleep(0.3)
        return [future.result() for future in futures]


def close(found):
    for connections in found:
        if not isinstance(connections, str):
            for connection in connections.values():
                connection.close()


def test_all_meet_and_the_port_is_free_again(at, caplog):
    with caplog.at_level("INFO"):
        found = meet_all(at, [(3, 2), (3, 0), (3, 1)])
    assert [sorted(connections) for connections in found] == [[0], [1, 2], [0]]
    assert f"waiting for process 0 at {at}" in caplog.text and "waiting for processes 1, 2 of 3" in caplog.text
    with socket.create_server(("", int(at.rpartition(":")[2])), family=socket.AF_INET6, dualstack_ipv6=True):
        pass
    found[1][2].sendall(b"x")
    assert found[0][0].recv(1) == b"x"
    close(found)


def test_who_does_not_come_is_named_after_our_own_time(at):
    began = time.monotonic()
    first, second = meet_all(at, [(3, 0), (3, 2)], timeout=1.5)
    assert "process 1 of 3 did not come within 2 s (--connect-timeout)" in first and "process 0 says which" in second
    assert time.monotonic() - began < 15


def test_two_with_one_number_and_another_count_are_refused_and_the_others_go_on(at):
    found = meet_all(at, [(3, 0), (3, 1), (3, 1), (2, 1), (3, 2)])
    assert "another process has --process-id 1 already" in found[2]
    assert "--num-processes is 3 of process 0, and 2 here" in found[3]
    assert sorted(found[0]) == [1, 2] and sorted(found[1]) == sorted(found[4]) == [0]
    close(found)


def test_a_host_that_is_not_known_and_one_where_nobody_listens(at):
    with pytest.raises(InputError, match=r"was not found at nowhere\.invalid:1 .*nowhere\.invalid is not known"):
        meet("nowhere.invalid:1", 2, 1, 0.1)
    with pytest.raises(InputError, match="was not found at localhost:.*refused"):
        meet(at, 2, 1, 0.1)
    with pytest.raises(InputError, match="a port is a number from 1 to 65535"):
        meet("localhost:123456", 2, 0, 0.1)


def test_a_port_in_use_is_said_at_once_by_either_side(at):
    port = int(at.rpartition(":")[2])
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        with pytest.raises(InputError, match=f"port {port} of --coordinator is in use"):
            meet(at, 2, 0, 60)

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(InputError, match="is no process 0 of selecttkd"):
            meet(at, 2, 1, 60)
        thread.join()
