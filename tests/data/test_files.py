"""Files in every dress, and what is wrong with them in one line."""

import csv
import gzip
import json
import re

import datasets
import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.data import read_records

GOOD = {"prompt": "How many?", "completion": "Seven."}
MESSAGES = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Seven."}]


def jsonl(*lines):
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()


def said(records):
    return [(record.prompt[-1]["content"], record.response[0]["content"]) for record in records]


def parquet(path, rows):
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def test_jsonl_may_be_gzipped_and_begin_with_a_mark(tmp_path):
    for name, content in [
        ("a.jsonl", b"\xef\xbb\xbf" + jsonl(GOOD)),
        ("a.jsonl.gz", gzip.compress(jsonl(GOOD))),
        ("no_suffix", gzip.compress(b"\xef\xbb\xbf" + jsonl(GOOD))),
    ]:
        (tmp_path / name).write_bytes(content)
        records = read_records(tmp_path / name)
        assert said(records) == [("How many?", "Seven.")] and records[0].source == f"{tmp_path / name} line 1"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_tables_as_text_are_read_with_their_lines(tmp_path, name):
    file = tmp_path / name
    plain = tmp_path / "plain"
    with plain.open("w", encoding="utf-8-sig", newline="") as out:
        table = csv.writer(out, delimiter="\t" if "tsv" in name else ",")
        table.writerows([["prompt", "completion", "tools"], ['say "two,\nlines"', "x" * 200_000, ""], ["3", "7", ""]])
    file.write_bytes(gzip.compress(plain.read_bytes()) if name.endswith("gz") else plain.read_bytes())
    records = read_records(file)
    assert said(records) == [('say "two,\nlines"', "x" * 200_000), ("3", "7")]
    assert [record.source for record in records] == [f"{file} line 2", f"{file} line 4"]
    assert csv.field_size_limit() == 131_072


def test_parquet_is_read_and_what_only_other_rows_have_is_no_key(tmp_path):
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    rows = [
        {"messages": MESSAGES, "tools": json.dumps([{"name": "add"}])},
        {"messages": [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [call]}, MESSAGES[1]]},
    ]
    file = parquet(tmp_path / "a.parquet", rows)
    first, second = read_records(file)
    assert first.source == f"{file} row 1" and first.tools == [{"name": "add"}] and second.tools is None
    assert first.response == (MESSAGES[1],)
    assert second.response[0] == {"role": "assistant", "tool_calls": [call]}
    renamed = tmp_path / "a.jsonl"
    renamed.write_bytes(file.read_bytes())
    assert len(read_records(renamed)) == 2  # by its content, not by its name


def test_messages_may_be_json_text(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl({"messages": json.dumps(MESSAGES)}, {"prompt": json.dumps(MESSAGES), "completion": "b"}))
    first, second = read_records(file)
    assert [*first.prompt, *first.response] == MESSAGES
    assert second.prompt[0]["content"] == json.dumps(MESSAGES)  # a prompt is a text that may be anything


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04rest", "is a zip archive or a spreadsheet; give JSONL in UTF-8"),
        (b"\x28\xb5\x2f\xfdrest", "is compressed by zstd"),
        (b"BZh9rest", "is compressed by bzip2"),
        (b"\xfd7zXZ\x00rest", "is compressed by xz"),
        ('{"prompt": "a"}\n'.encode("utf-16"), "is text in UTF-16"),
        (gzip.compress(jsonl(GOOD) * 99, mtime=0)[:40], "cannot be read .EOFError"),
        (b"PAR1 and nothing more", "cannot be read .ArrowInvalid"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, content, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{re.escape(str(file))} {message}") as caught:
        read_records(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 10_000 + "]" * 10_000, "nested more than 100 levels deep"),
        ('{"prompt": ' + "[" * 10_000 + "]" * 10_000 + "}", "nested more than 100 levels deep"),
        ('{"prompt": ' + "9" * 4_400 + "}", "prompt is a number that no float can hold"),
        (
            '{"prompt": "a", "completion": "b", "weight": 1' + "0" * 400 + "}",
            "weight is a number that no float can hold",
        ),
        ('{"prompt": "a", "completion": 1e400}', "completion is a number that no float can hold"),
        ('{"prompt": "a", "completion": "b \\ud83d"}', "completion holds half a surrogate pair"),
        ('{"prompt": "a", "\\udc00": "b"}', "the key .* holds half a surrogate pair"),
        ('{"prompt": "a\0b"}', "is not valid JSON"),
        ('{"prompt": ["a"]}', "message 1 of prompt must be an object with role and content, found str"),
        ('{"prompt": {"role": "user"}}', "prompt must be text or a list of messages, got dict"),
        ('{"messages": [{"role": ["user"], "content": "a"}]}', r"has the role \['user'\]; expected one of"),
        ('{"messages": [{"role": {}, "content": "a"}]}', "has the role {}; expected one of"),
        ('{"messages": "[1"}', r"messages must be a list of messages, got text \('\[1'\) that is no JSON"),
        ('{"prompt": "a", "completion": "b", "tools": {"a": 1}}', "tools must be a list of objects"),
        ('{"prompt": "a", "completion": "b", "tools": "add"}', "tools must be a list of objects, got text"),
        ('{"prompt": "a", "completion": "b", "chat_template_kwargs": [1]}', "chat_template_kwargs must be an object"),
    ],
)
def test_what_no_row_can_hold_is_named_with_its_line(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl(GOOD, line))
    with pytest.raises(InputError, match=f"{re.escape(str(file))} line 2:? .*{message}") as caught:
        read_records(file)
    assert "\n" not in str(caught.value)


def test_cells_too_many_are_named(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("prompt,completion\na,b\nc,d,e\n")
    with pytest.raises(InputError, match=r"a.csv line 3 has more cells than the first line names columns"):
        read_records(file)


def test_home_is_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_bytes(jsonl(GOOD))
    assert len(read_records("~/a.jsonl")) == 1
    with pytest.raises(InputError, match="data file '~/b.jsonl' does not exist"):
        read_records("~/b.jsonl")
    with pytest.raises(InputError, match="holds a NUL"):
        read_records("a\0.jsonl")
    with pytest.raises(InputError, match="cannot be read|does not exist"):
        read_records("x" * 5_000 + ".jsonl")


BAD = {"prompt": "How many?", "completion": " "}


def test_all_bad_rows_are_named_at_once(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl(GOOD, BAD, GOOD, "{", {"text": "a"}))
    with pytest.raises(InputError) as caught:
        read_records(file)
    message = str(caught.value)
    assert message.startswith(f"3 of 5 rows of {file} cannot be used: {file} line 2 has an empty response")
    assert f"; {file} line 4 is not valid JSON" in message and f"; {file} line 5 has an unknown shape" in message
    assert message.endswith("; mend them, or leave them out with data.skip_bad_rows = true") and "\n" not in message
    file.write_bytes(jsonl(*[BAD] * 12, GOOD))
    with pytest.raises(InputError, match=r"12 of 13 rows .* line 10 has [^;]*;[^;]*; and 2 more; mend") as caught:
        read_records(file)
    assert "line 11" not in str(caught.value)


def test_bad_rows_are_skipped_and_counted_where_that_is_asked_for(tmp_path, caplog):
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl(GOOD, BAD, "{", GOOD))
    records = read_records(file, skip_bad_rows=True)
    assert [record.source for record in records] == [f"{file} line 1", f"{file} line 4"]
    assert f"{file}: 2 of 4 rows are skipped: {file} line 2 has an empty" in caplog.text
    file.write_bytes(jsonl(BAD, BAD))
    with pytest.raises(InputError, match="2 of 2 rows"):
        read_records(file, skip_bad_rows=True)
    file.write_bytes(jsonl(BAD))
    with pytest.raises(InputError, match="line 1 has an empty response"):
        read_records(file, skip_bad_rows=True)
