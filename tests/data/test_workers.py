"""Several processes make the rows that one makes, say what it says, and end with whoever asked them."""

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from selecttkd_jax import data
from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax.data import Record, _tokenize
from selecttkd_jax.data._workers import count_workers, map_in_order

pytestmark = pytest.mark.one_stack


def make_records(count=40):
    """Records of many lengths; some are cut, some have no room, two are no text, and some have unused reasoning."""
    records = []
    for number in range(count):
        answer = {"role": "assistant", "content": "a\ud83d" if number in (9, 30) else "yes " * (number % 13 + 1)}
        if number % 5 == 2:
            answer["reasoning_content"] = "so"
        prompt = "is it true? " * (30 if number % 11 == 3 else 1 + number % 4)
        records.append(Record(({"role": "user", "content": prompt},), (answer,), source=f"a.jsonl line {number + 1}"))
    return records


def test_two_processes_make_the_rows_of_one_and_say_the_same(chat_tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(_tokenize, "_CHUNK_RECORDS", 7)
    made, said = [], []
    for workers in (1, 2):
        caplog.clear()
        rows = data.tokenize_records(
            make_records(), chat_tokenizer, 48, [0], skip_bad_rows=True, name="a.jsonl", workers=workers
        )
        made.append(rows)
        said.append([record.getMessage() for record in caplog.records if record.levelname == "WARNING"])
    alone, together = made
    assert said[0] == said[1]
    assert [text.partition(": ")[0] for text in said[0][:1]] == ["a.jsonl"] and "line 10 holds half" in said[0][0]
    assert any("leaves out" in text for text in said[0]) and any("no end-of-turn token" in text for text in said[0])
    assert alone.cut and alone.dropped and len(alone) + alone.dropped == 38
    assert together.fingerprint == alone.fingerprint and together.sources == alone.sources
    for name in ("read", "cut", "dropped", "max_length"):
        assert getattr(together, name) == getattr(alone, name)


def test_results_come_in_order_and_errors_as_they_are():
    # math.factorial takes longer the larger its item is: later items are ready before earlier ones.
    items = [20_000, 3, 9_000, 1, 0, 2]
    assert list(map_in_order(math.factorial, items, 2)) == [math.factorial(item) for item in items]
    with pytest.raises(InputError, match=r"data\.x must be at least 3, got 2"):
        list(map_in_order(partial(check_at_least, "data.x", low=3), [3, 2], 2))


def test_a_process_that_dies_or_a_defect_is_no_riddle():
    with pytest.raises(InputError, match=r"ended before its time \(exit code 7\).*data\.workers = 1"):
        list(map_in_order(os._exit, [7, 7], 2))
    with pytest.raises(RuntimeError, match="ValueError: factorial"):
        list(map_in_order(math.factorial, [1, -1], 2))


# A script without a guard, with JAX's threads running, that asks for processes at its top level.
SCRIPT = """
import jax, math
jax.block_until_ready(jax.jit(lambda x: x @ x)(jax.numpy.ones((300, 300))))
from selecttkd_jax.data._workers import map_in_order
print("script")
answers = map_in_order(math.factorial, range(5), 2)
print(next(answers), *answers)
"""


def test_a_script_needs_no_guard_and_jax_may_have_threads(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split() == ["script", "1", "1", "2", "6", "24"], done.stderr


def test_who_stops_listening_leaves_no_process():
    answers = map_in_order(math.factorial, range(1000), 2)
    next(answers)
    answers.close()
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.exists():
        for child in children.read_text().split():
            assert "_workers" not in Path(f"/proc/{child}/cmdline").read_text()


def test_small_work_stays_in_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)), raising=False)
    assert count_workers(9, 10) == 1 and count_workers(10, 10) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert count_workers(10, 10) == 8


def test_workers_are_one_at_least():
    with pytest.raises(InputError, match=r"data\.workers must be at least 1, got 0"):
        data.DataConfig(train="a.jsonl", workers=0)
