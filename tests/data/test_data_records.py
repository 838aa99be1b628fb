"""What a user's file may hold, and the one line each mistake gets."""

import json
import re

import datasets
import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.data import read_records, student_records

USER, ASSISTANT = {"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Seven."}


def write(tmp_path, *lines):
    file = tmp_path / "train.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("line", "prompt", "response"),
    [
        ({"messages": [USER, ASSISTANT, USER]}, [USER], [ASSISTANT, USER]),
        ({"messages": [USER]}, [USER], []),
        ({"prompt": "How many?", "completion": "Seven."}, [USER], [ASSISTANT]),
        ({"prompt": [USER, ASSISTANT, USER], "completion": "Seven."}, [USER, ASSISTANT, USER], [ASSISTANT]),
        ({"prompt": [USER], "completion": [ASSISTANT]}, [USER], [ASSISTANT]),
        ({"prompt": "How many?", "id": 7, "completion": None}, [USER], []),
        ({"prompt": "How many?", "teacher_response": "Seven.", "student_response": "No."}, [USER], [ASSISTANT]),
    ],
)
def test_accepted_shapes(tmp_path, line, prompt, response):
    (record,) = read_records(write(tmp_path, line))
    assert (list(record.prompt), list(record.response)) == (prompt, response)


def test_contrastive_records_have_two_sides(tmp_path):
    line = {"prompt": "How many?", "teacher_response": "Seven.", "student_response": "Eight."}
    records = read_records(write(tmp_path, line))
    assert records[0].student_response == ({"role": "assistant", "content": "Eight."},)
    (student,) = student_records(records)
    assert student.response == records[0].student_response and student.prompt == records[0].prompt


def test_raw_columns_are_mapped_by_one_option(tmp_path):
    file = write(tmp_path, {"question": "How many?", "answer": "Seven.", "level": 3})
    (record,) = read_records(file, columns=["question", "answer"])
    assert record.prompt == (USER,) and record.response == (ASSISTANT,)
    with pytest.raises(InputError, match=r'found question, answer, level; .* columns = \["question", "answer"\]'):
        read_records(file)
    with pytest.raises(InputError, match="line 1 has no column 'reply'; found question, answer, level"):
        read_records(file, columns=("question", "reply"))
    with pytest.raises(InputError, match="columns must name two columns"):
        read_records(file, columns=("question",))
    with pytest.raises(InputError, match="level must be text or a list of messages, got int"):
        read_records(file, columns=("question", "level"))


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    assert [(r.prompt[0]["content"], r.source) for r in read_records(file)] == [
        ("a", f"{file} line 1"),
        ("b", f"{file} line 3"),
    ]


GOOD = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "completion": "b"', "is not valid JSON: .* every line must be one whole JSON object"),
        ("[1, 2]", "must be a JSON object, got list"),
        ({"text": "a"}, "unknown shape: found text; expected messages; prompt [+] completion"),
        ({}, "unknown shape: found no keys"),
        ({"prompt": "a", "teacher_response": "b"}, "unknown shape: found prompt, teacher_response"),
        ({"instruction": "a", "input": "b", "output": "c"}, r'columns = \["instruction", "input", "output"\]'),
        ({"prompt": "a", "completion": " \n"}, r"has an empty response \(completion\)"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "message 2 of messages is an empty response"),
        ({"messages": []}, "messages is an empty list"),
        ({"messages": "a"}, "messages must be text or a list|messages must be a list"),
        ({"messages": [ASSISTANT]}, "the first message is the assistant's"),
        ({"messages": [{"from": "human", "value": "a"}]}, "must be an object with role and content, found from, value"),
        ({"messages": [{"role": "human", "content": "a"}]}, "has the role 'human'; expected one of system"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "must have text as its content, got list"),
        ({"prompt": 3, "completion": "a"}, "prompt must be text or a list of messages, got int"),
        ({"prompt": "a", "completion": [USER]}, "must begin with an assistant message, got role 'user'"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path, line, message):
    file = write(tmp_path, GOOD, GOOD, line, GOOD)
    with pytest.raises(InputError, match=f"{re.escape(str(file))} line 3.*({message})") as caught:
        read_records(file)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_text_are_named(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(InputError, match="line 2 is not UTF-8 text"):
        read_records(file)


def test_a_json_array_is_explained(tmp_path):
    file = tmp_path / "train.json"
    file.write_text(json.dumps([GOOD], indent=1))
    with pytest.raises(InputError, match="looks like one JSON array: write one object a line"):
        read_records(file)


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_an_empty_file_is_refused(tmp_path, text):
    file = tmp_path / "train.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=f"{file.name}' is empty"):
        read_records(file)


def test_missing_data_are_refused(tmp_path):
    with pytest.raises(InputError, match="missing.jsonl' does not exist"):
        read_records(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="'train.jsonl' does not exist"):
        read_records("train.jsonl")
    with pytest.raises(InputError, match="neither a file nor a data set that could be loaded from the hub"):
        read_records("owner/missing-data")
    with pytest.raises(InputError, match="was not written by datasets; write it with"):
        read_records(tmp_path)
    file = write(tmp_path, GOOD)
    with pytest.raises(InputError, match=f"give the file itself, such as '{file}'"):
        read_records(tmp_path)


def test_directories_written_by_datasets_are_read(tmp_path):
    rows = datasets.Dataset.from_list([{"question": "How many?", "answer": "Seven."}] * 3)
    rows.save_to_disk(tmp_path / "plain")
    (tmp_path / "splits").mkdir()
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "splits")
    columns = ("question", "answer")
    assert len(read_records(tmp_path / "plain", columns)) == len(read_records(tmp_path / "splits", columns)) == 3
    assert len(read_records(str(tmp_path / "splits"), columns, split="test")) == 1
    with pytest.raises(InputError, match="has no split 'validation'; it has train, test"):
        read_records(tmp_path / "splits", columns, split="validation")
    with pytest.raises(InputError, match="plain row 1 has an unknown shape"):
        read_records(tmp_path / "plain")


def test_hub_names_may_name_a_subset(monkeypatch):
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        return [{"question": "How many?", "answer": "Seven."}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (record,) = read_records("openai/gsm8k:main", ("question", "answer"))
    assert record.source == "openai/gsm8k:main train row 1"
    read_records("owner/name", ("question", "answer"), split="test")
    assert asked == [("openai/gsm8k", "main", "train"), ("owner/name", None, "test")]


def test_a_column_that_one_row_of_a_data_set_lacks_is_no_key(tmp_path):
    datasets.Dataset.from_list([GOOD, {"prompt": "alone"}]).save_to_disk(tmp_path / "mixed")
    assert [len(record.response) for record in read_records(tmp_path / "mixed")] == [1, 0]


def test_a_middle_column_continues_the_prompt_where_it_is_filled(tmp_path, caplog):
    rows = [
        {"instruction": "Add.", "input": "2 and 3", "output": "5"},
        {"instruction": "Go.", "input": "", "output": "a"},
    ]
    file = write(tmp_path, *rows, {"instruction": "Stop.", "output": "b"})
    records = read_records(file, columns=("instruction", "input", "output"))
    assert [record.prompt[0]["content"] for record in records] == ["Add.\n\n2 and 3", "Go.", "Stop."]
    assert not caplog.records
    read_records(file, columns=("instruction", "output"))
    assert f"{file}: not used and left out: 'input' (2 rows)" in caplog.text
    with pytest.raises(InputError, match="line 1: instruction and input must be text"):
        read_records(write(tmp_path, {**rows[0], "input": [1]}), columns=("instruction", "input", "output"))


def test_keys_that_nothing_is_made_of_are_named_once_with_their_counts(tmp_path, caplog):
    lines = [
        {**GOOD, "id": 1, "source": "x"},
        {**GOOD, "id": 2},
        {"messages": [USER, ASSISTANT], "prompt": "c", "tools": []},
    ]
    read_records(write(tmp_path, *lines))
    (warning,) = caplog.records
    assert warning.getMessage().endswith(": 'id' (2 rows), 'source' (1 rows), 'prompt' (1 rows)")


def test_tools_and_options_of_the_template_come_with_the_record(tmp_path):
    tools, kwargs = [{"name": "add"}], {"enable_thinking": False}
    for line in (
        {**GOOD, "tools": tools, "chat_template_kwargs": kwargs},
        {"messages": [USER, ASSISTANT], "tools": json.dumps(tools), "chat_template_kwargs": json.dumps(kwargs)},
    ):
        (record,) = read_records(write(tmp_path, line))
        assert record.tools == tools and record.template_kwargs == kwargs


def test_the_first_learned_answer_ends_the_prompt(tmp_path):
    unlearned = {**ASSISTANT, "weight": 0}
    (record,) = read_records(write(tmp_path, {"messages": [USER, unlearned, USER, ASSISTANT]}))
    assert record.prompt == (USER, unlearned, USER) and record.response == (ASSISTANT,)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({**ASSISTANT, "weight": 0.5}, r"weight must be 0 \(not learned\) or 1 \(learned\), got 0.5"),
        ({**ASSISTANT, "weight": "1"}, "weight must be 0"),
        ({**ASSISTANT, "train": 1}, "train must be true or false, got 1"),
        ({**ASSISTANT, "weight": 1, "train": False}, "weight is 1 and train is false"),
        ({**ASSISTANT, "weight": 0}, "none of the answers is learned"),
        ({**USER, "train": True}, "is the user's and cannot be learned"),
        ({**ASSISTANT, "tool_calls": "add"}, "tool_calls must be a list of objects, got text"),
        ({**ASSISTANT, "tool_calls": [1]}, "tool_calls must be a list of objects"),
        ({**ASSISTANT, "reasoning_content": 1}, "must have text as its reasoning_content, got int"),
        ({"role": "assistant", "content": None}, "must be an object with role and content, found role"),
        ({"role": "assistant", "content": " ", "tool_calls": []}, "is an empty response"),
    ],
)
def test_what_a_message_cannot_say_is_named(tmp_path, message, complaint):
    with pytest.raises(InputError, match=f"line 1: .*{complaint}|line 1: {complaint}"):
        read_records(write(tmp_path, {"messages": [USER, message]}))
