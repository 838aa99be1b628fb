"""Answers of a server in a file: as they come, continued after an interruption, read as training data."""

import json
import signal
import subprocess
import sys
import time

import pytest
from generation.scripted_server import echo, say, send, serving, slow

from selecttkd_jax import data, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.cli import main
from selecttkd_jax.generation import Sampling

pytestmark = pytest.mark.one_stack
SAMPLING = Sampling(temperature=0.0, max_new_tokens=20)
RECORDS = [data.Record(({"role": "user", "content": f"question {number}"},), source=str(number)) for number in range(9)]
TEXTS = [f"QUESTION {number}" for number in range(9)]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_come_back_in_order_with_and_without_a_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    with serving(echo) as (script, server):
        assert runs.generate_from_server(server, RECORDS, SAMPLING) == TEXTS
        assert runs.generate_from_server(server, RECORDS, SAMPLING, path) == TEXTS
        assert len(script.requests) == 18
        # A file that is complete asks nothing.
        assert runs.generate_from_server(server, RECORDS, SAMPLING, path) == TEXTS
        assert len(script.requests) == 18
    assert [row["index"] for row in lines_of(path)] == list(range(9))
    assert [record.response[0]["content"] for record in data.read_records(path)] == TEXTS


def test_a_server_that_breaks_down_leaves_what_it_answered_and_the_rest_is_asked_later(tmp_path):
    path = tmp_path / "answers.jsonl"
    with serving(*[echo] * 5, send(500, b"out of memory")) as (_, server):
        with pytest.raises(InputError, match="did not answer .* 500 .*: out of memory"):
            runs.generate_from_server(server, RECORDS, SAMPLING, path)
    answered = {row["index"] for row in lines_of(path)}
    assert len(answered) == 5
    with serving(echo) as (script, server):
        assert runs.generate_from_server(server, RECORDS, SAMPLING, path) == TEXTS
        asked = {int(request["body"]["messages"][0]["content"].split()[1]) for request in script.requests}
    assert asked == set(range(9)) - answered


def test_other_sampling_does_not_continue_a_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    with serving(echo) as (script, server):
        runs.generate_from_server(server, RECORDS[:2], SAMPLING, path)
        with pytest.raises(InputError, match="made with other settings: sampling"):
            runs.generate_from_server(server, RECORDS[:2], Sampling(temperature=1.0, max_new_tokens=20), path)
        assert len(script.requests) == 2


def test_empty_and_cut_answers_are_marked_in_the_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    with serving(say("whole"), say("ha", "length"), say(" ")) as (_, server):
        one_by_one = type(server)(server.url, server.model, concurrency=1)
        assert runs.generate_from_server(one_by_one, RECORDS[:3], SAMPLING, path) == ["whole", "ha", ""]
    assert [row["finish"] for row in lines_of(path)] == ["stop", "length", "empty"]
    assert [record.unfinished for record in data.read_records(path)] == [False, True]


KILLED = """
import sys
from pathlib import Path
from selecttkd_jax import data, runs
from selecttkd_jax.generation import Sampling, Server
records = [data.Record(({"role": "user", "content": f"question {n}"},), source=str(n)) for n in range(9)]
server = Server(sys.argv[1], "tiny", concurrency=2)
runs.generate_from_server(server, records, Sampling(temperature=0.0, max_new_tokens=20), Path(sys.argv[2]))
"""


def test_a_process_that_is_killed_leaves_what_was_answered(tmp_path):
    path = tmp_path / "answers.jsonl"
    with serving(echo, echo, echo, slow(60)) as (_, server):
        process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(path)])
        until = time.monotonic() + 60
        while not (path.exists() and len(path.read_bytes().splitlines()) == 3):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(echo) as (script, server):
        assert runs.generate_from_server(server, RECORDS, SAMPLING, path) == TEXTS
        assert len(script.requests) == 6


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    path, asked = tmp_path / "answers.jsonl", tmp_path / "prompts.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f"question {number}"}) + "\n" for number in range(3)))
    monkeypatch.setenv("TINY_KEY", "sk-secret")
    with serving(echo) as (script, server):
        words = ["generate", "tiny", "--server", server.url, "--max-new-tokens", "20", "--min-p", "0.1"]
        assert main([*words, "--file", str(asked), "--output", str(path), "--key-variable", "TINY_KEY"]) == 0
        assert [row["completion"] for row in lines_of(path)] == TEXTS[:3]
        body = script.requests[0]["body"]
        assert (body["model"], body["max_tokens"], body["min_p"]) == ("tiny", 20, 0.1)
        assert {request["headers"]["Authorization"] for request in script.requests} == {"Bearer sk-secret"}
        capsys.readouterr()
        assert main([*words, "hello"]) == 0 and capsys.readouterr().out == "HELLO\n"
        for option in (["--slots", "4"], ["--mesh.data", "2"], ["--dtype", "float32"], ["--date", "2024-01-01"]):
            assert main([*words, "hello", *option]) == 2
            assert "for models that run here; leave" in capsys.readouterr().err
