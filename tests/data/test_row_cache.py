"""Rows that are kept: the same as made anew, told of the same, and made anew where anything differs."""

import logging
import os
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest

from selecttkd_jax.data import Rows, _row_cache, fingerprint_rows, load_rows
from selecttkd_jax.data._row_cache import Ragged

LENGTHS = (5, 12, 1, 4)


def make_rows(seed=0):
    rng = np.random.default_rng(seed)
    tokens = tuple(rng.integers(0, 90, count).astype(np.int32) for count in LENGTHS)
    response = tuple(np.arange(len(row)) >= 2 for row in tokens)
    return Rows(tokens, response, 12, read=7, cut=1, dropped=3, sources=tuple(f"a.jsonl line {i}" for i in range(4)))


@pytest.fixture
def maker():
    """A function that makes two sets of rows, warns of them, and counts how often it was asked."""

    def make():
        make.calls += 1
        logging.getLogger("selecttkd_jax.data._tokenize").warning("%d of %d rows are odd", 2, 7)
        return {"training rows": make_rows(), "held-out rows": make_rows(1)}

    make.calls = 0
    return make


def again_checksums(rows):
    return [zlib.crc32(tokens.tobytes()) for tokens in rows.tokens]


def assert_same(found, expected):
    for name in ("max_length", "read", "cut", "dropped"):
        assert getattr(found, name) == getattr(expected, name)
    assert list(found.sources) == list(expected.sources) and found.sources[-1] == expected.sources[-1]
    for name in ("total_tokens", "response_tokens", "prompts_alone", "fingerprint", "largest_id"):
        assert getattr(found, name) == getattr(expected, name), name
    assert list(found.prompt_lengths) == list(expected.prompt_lengths)
    assert found.checksums.tolist() == expected.checksums.tolist() == again_checksums(expected)
    assert found.lengths.tolist() == expected.lengths.tolist() and found.summary() == expected.summary()
    for ours, theirs in zip((found.tokens, found.response), (expected.tokens, expected.response), strict=True):
        assert len(ours) == len(theirs)
        for mine, given in zip(ours, theirs, strict=True):
            assert mine.dtype == given.dtype and mine.tolist() == given.tolist()
    # What was counted once is what counting says again.
    again = Rows(tuple(found.tokens), tuple(found.response), found.max_length, found.read)
    assert (again.fingerprint, again.response_tokens) == (expected.fingerprint, expected.response_tokens)


def test_a_second_start_reads_what_the_first_has_made_and_tells_the_same(tmp_path, maker, caplog):
    made = load_rows(tmp_path / "rows", {"a": 1}, maker)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        found = load_rows(tmp_path / "rows", {"a": 1}, maker)
    assert maker.calls == 1 and list(found) == list(made)
    for name in made:
        assert_same(found[name], made[name])
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == said
    assert "rows from " in caplog.text
    assert not found["training rows"].tokens[0].flags.writeable  # it is the file's


@pytest.mark.parametrize("key", [{"a": 2}, {"a": 1, "b": None}, {}])
def test_another_key_makes_other_rows(tmp_path, maker, key):
    load_rows(tmp_path, {"a": 1}, maker)
    load_rows(tmp_path, key, maker)
    assert maker.calls == 2


def test_other_code_makes_rows_anew(tmp_path, maker, monkeypatch):
    load_rows(tmp_path, {}, maker)
    monkeypatch.setattr(_row_cache, "_code", lambda: ["another release"])
    load_rows(tmp_path, {}, maker)
    assert maker.calls == 2


def test_nothing_is_kept_of_what_fails_or_without_a_folder(tmp_path, maker):
    def fail():
        raise ValueError("line 3")

    with pytest.raises(ValueError, match="line 3"):
        load_rows(tmp_path, {}, fail)
    assert not list(tmp_path.glob("*.arrow*.part")) and not list(tmp_path.glob("*.arrow"))
    load_rows(None, {}, maker)
    load_rows(None, {}, maker)
    assert maker.calls == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"", lambda data: b"x" * len(data)])
def test_a_file_that_cannot_be_read_is_made_anew(tmp_path, maker, damage, caplog):
    made = load_rows(tmp_path, {}, maker)
    (file,) = tmp_path.glob("*.arrow")
    damaged = damage(file.read_bytes())
    file.unlink()  # the rows that were made are the file's
    file.write_bytes(damaged)
    found = load_rows(tmp_path, {}, maker)
    assert maker.calls == 2 and "made anew" in caplog.text
    assert_same(found["training rows"], made["training rows"])
    load_rows(tmp_path, {}, maker)
    assert maker.calls == 2


def test_a_folder_that_cannot_be_made_is_only_told(tmp_path, maker, caplog):
    (tmp_path / "file").touch()
    load_rows(tmp_path / "file" / "rows", {}, maker)
    assert maker.calls == 1 and "rows are not kept" in caplog.text


def test_the_oldest_files_go(tmp_path, maker, monkeypatch):
    known = set()
    for number in range(3):
        load_rows(tmp_path, {"number": number}, maker)
        (new,) = set(tmp_path.glob("*.arrow")) - known
        os.utime(new, (1e9 + number, 1e9 + number))
        known.add(new)
    size = max(file.stat().st_size for file in tmp_path.glob("*.arrow"))
    monkeypatch.setattr(_row_cache, "_KEPT", 2.5 * size)
    load_rows(tmp_path, {"number": 3}, maker)
    assert len(list(tmp_path.glob("*.arrow"))) == 2
    load_rows(tmp_path, {"number": 2}, maker)
    assert maker.calls == 4
    load_rows(tmp_path, {"number": 0}, maker)
    assert maker.calls == 5


ONE_OF_TWO = """
import sys, time
import numpy as np
from pathlib import Path
from selecttkd_jax.data import Rows, load_rows

def make():
    print("made", flush=True)
    time.sleep(1)
    return {"rows": Rows((np.arange(3, dtype=np.int32),), (np.array([False, True, True]),), 4, read=1, sources=("a",))}

rows = load_rows(Path(sys.argv[1]), {}, make)["rows"]
mapped = [line.split()[1][:3] for line in open("/proc/self/maps") if line.rstrip().endswith(".arrow")]
print(len(rows), *mapped, flush=True)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="says what is mapped")
def test_processes_that_start_together_make_rows_once_and_share_them(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", ONE_OF_TWO, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(worker.communicate(timeout=120)[0] for worker in workers)
    # Both have mapped the one file, and cannot write: its pages are in memory once.
    assert said == ["1 r--\n", "made\n1 r--\n"]


def test_a_ragged_sequence_is_one():
    values, offsets = np.arange(6), np.array([0, 2, 2, 6])
    ragged = Ragged(values, offsets)
    assert [row.tolist() for row in ragged] == [[0, 1], [], [2, 3, 4, 5]]
    assert ragged[-1].tolist() == [2, 3, 4, 5] and [row.tolist() for row in ragged[1:]] == [[], [2, 3, 4, 5]]
    for index in (3, -4):
        with pytest.raises(IndexError):
            ragged[index]


def test_data_are_known_by_what_is_in_them(tmp_path):
    file, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text("{}\n")
    other.write_text("{}\n")
    first = fingerprint_rows(file, "train")
    assert first is not None and first == fingerprint_rows(other, "train") and first[1] == 3
    assert fingerprint_rows(file, "test") != first
    file.write_text("{} \n")
    assert fingerprint_rows(file, "train") != first
    assert fingerprint_rows(tmp_path, "train") is None  # no data set: it is not read through to say so
    assert fingerprint_rows(tmp_path / "missing.jsonl", "train") is None


def test_a_saved_data_set_is_known_by_its_split_and_by_nothing_else_in_its_folder(tmp_path):
    import datasets

    splits = {name: datasets.Dataset.from_dict({"prompt": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path))
    before = fingerprint_rows(tmp_path, "train")
    assert before is not None and fingerprint_rows(tmp_path, "test") != before
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / f"{'0' * 40}.arrow").write_text("rows that are kept")
    assert fingerprint_rows(tmp_path, "train") == before


def test_files_of_others_stay_and_what_killed_processes_left_goes(tmp_path, maker, monkeypatch):
    theirs = [tmp_path / "data-00000-of-00002.arrow", tmp_path / "rows.part"]
    left = tmp_path / f"{'a' * 40}.123.part"
    for file in (*theirs, left):
        file.write_text("x" * 1000)
        os.utime(file, (1e9, 1e9))
    monkeypatch.setattr(_row_cache, "_KEPT", 1)
    load_rows(tmp_path, {}, maker)
    assert all(file.exists() for file in theirs) and not left.exists()
    load_rows(tmp_path, {}, maker)
    assert maker.calls == 1


def test_rows_that_cannot_be_kept_are_used_all_the_same(tmp_path, caplog):
    rows = {"rows": replace(make_rows(), sources=())}
    assert load_rows(tmp_path, {}, lambda: rows) is rows
    assert "rows are not kept" in caplog.text and not list(tmp_path.glob("*.arrow*.part"))
