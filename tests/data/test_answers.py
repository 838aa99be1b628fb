"""Files of answers: whole after each answer, continued where they stopped, refused where they are another run's."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_tokenizers import CHATML_MARKED

from selecttkd_jax._errors import InputError
from selecttkd_jax.data import AnswerFile, Record, read_records, stop_ids, tokenize_records

PROMPTS = [[{"role": "user", "content": f"question {number}"}] for number in range(5)]
SETTINGS = {"model": "tiny", "sampling": {"temperature": 0.5}, "seed": 3}
pytestmark = pytest.mark.one_stack


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_on_disk_as_they_come_and_in_order_in_the_end(tmp_path):
    path = tmp_path / "answers.jsonl"
    answers = AnswerFile(path, PROMPTS[:3], SETTINGS)
    answers.append(2, "two\nlines, é", cut=False)
    assert lines_of(path) == [{"index": 2, "prompt": PROMPTS[2], "completion": "two\nlines, é", "finish": "stop"}]
    answers.append(0, "cut", cut=True)
    answers.append(1, " \n", cut=True)
    assert answers.finish() == {"stop": 1, "length": 1, "empty": 1}
    assert [(row["index"], row["finish"]) for row in lines_of(path)] == [(0, "length"), (1, "empty"), (2, "stop")]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.jsonl", "answers.jsonl.settings.json"]


@pytest.mark.parametrize("torn", [b"", b'{"index": 3, "pro', b'{"index": 3, "prompt": "\xc3'])
def test_an_interrupted_file_goes_on(tmp_path, torn):
    path = tmp_path / "answers.jsonl"
    first = AnswerFile(path, PROMPTS, SETTINGS)
    for index in (4, 1):
        first.append(index, f"answer {index}", cut=False)
    with path.open("ab") as file:
        file.write(torn)
    again = AnswerFile(path, PROMPTS, SETTINGS)
    assert again.waiting == [0, 2, 3] and len(again) == 2
    assert [row["index"] for row in lines_of(path)] == [4, 1]
    for index in again.waiting:
        again.append(index, f"answer {index}", cut=False)
    again.finish()
    assert [row["completion"] for row in lines_of(path)] == [f"answer {index}" for index in range(5)]
    assert AnswerFile(path, PROMPTS, SETTINGS).waiting == []


def test_another_runs_file_is_refused_untouched(tmp_path):
    path = tmp_path / "answers.jsonl"
    AnswerFile(path, PROMPTS, SETTINGS).append(1, "one", cut=False)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"other settings: seed \(3 there, 4 here\); restore them or name a new file"):
        AnswerFile(path, PROMPTS, SETTINGS | {"seed": 4})
    with pytest.raises(InputError, match=r"answers\.jsonl line 1 answers another prompt than is asked now"):
        AnswerFile(path, PROMPTS[::-1][:3], SETTINGS)
    assert path.read_bytes() == before
    (tmp_path / "other.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(InputError, match=r"other\.jsonl exists and other\.jsonl\.settings\.json does not"):
        AnswerFile(tmp_path / "other.jsonl", PROMPTS, SETTINGS)
    with pytest.raises(InputError, match="is not a directory; name an existing one"):
        AnswerFile(tmp_path / "none" / "answers.jsonl", PROMPTS, SETTINGS)


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    AnswerFile(path, PROMPTS, SETTINGS).append(1, "one", cut=False)
    with path.open("ab") as file:
        file.write(b'{"prompt": \n')
    with pytest.raises(InputError, match=r"answers\.jsonl line 2 is not valid JSON"):
        AnswerFile(path, PROMPTS, SETTINGS)


def test_threads_may_append(tmp_path):
    prompts = [[{"role": "user", "content": str(number)}] for number in range(64)]
    answers = AnswerFile(tmp_path / "answers.jsonl", prompts, {})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: answers.append(index, "x" * 5000, cut=False), range(64)))
    answers.finish()
    assert [row["index"] for row in lines_of(answers.path)] == list(range(64))


def test_training_reads_answers_without_the_empty_ones_and_without_the_end_of_the_cut_ones(
    tmp_path, chat_tokenizer, caplog
):
    path = tmp_path / "answers.jsonl"
    answers = AnswerFile(path, PROMPTS[:3], SETTINGS)
    answers.append(0, "seven", cut=False)
    answers.append(1, "seven eggs", cut=True)
    answers.append(2, "", cut=False)
    records = read_records(path)
    assert [record.unfinished for record in records] == [False, True]
    assert "1 answers are empty and left out" in caplog.text and "1 of 2 answers were cut" in caplog.text
    assert "not used" not in caplog.text
    for template, end in (("chat", "<|im_end|>"), ("plain", "<|im_end|>")):
        rows = tokenize_records(records, chat_tokenizer, 64, stop_ids(chat_tokenizer), template)
        texts = [chat_tokenizer.decode(row[mask]) for row, mask in zip(rows.tokens, rows.response, strict=True)]
        assert texts == ["seven" + end, "seven eggs"]
    assert "no end-of-turn token" not in caplog.text
    only = AnswerFile(tmp_path / "only.jsonl", PROMPTS[:1], SETTINGS)
    only.append(0, "", cut=False)
    with pytest.raises(InputError, match="all 1 answers in .*only.jsonl' are empty"):
        read_records(only.path)


def test_an_end_that_the_template_itself_marks_is_not_learned_of_a_cut_answer(chat_tokenizer):
    marked = type(chat_tokenizer).from_pretrained(chat_tokenizer.name_or_path)
    marked.chat_template = CHATML_MARKED
    answer = ({"role": "assistant", "content": "seven"},)
    for unfinished, expected in ((False, "seven<|im_end|>"), (True, "seven")):
        rows = tokenize_records([Record(PROMPTS[0], answer, unfinished=unfinished)], marked, 64, stop_ids(marked))
        assert marked.decode(rows.tokens[0][rows.response[0]]) == expected


def test_what_the_template_needs_beside_the_messages_stays_in_the_row(tmp_path):
    tools = [{"type": "function", "function": {"name": "search"}}]
    turns = tuple({"role": role, "content": role} for role in ("user", "assistant", "user", "assistant"))
    several = Record(turns[:1], turns[1:], tools=tools, template_kwargs={"enable_thinking": False})
    answers = AnswerFile.of_records(tmp_path / "answers.jsonl", [several, Record(turns[:1])], SETTINGS)
    answers.append(0, "ours", cut=False)
    answers.append(1, "ours", cut=False)
    first, second = read_records(answers.path)
    assert first.prompt == turns[:3] and first.response == ({"role": "assistant", "content": "ours"},)
    assert first.tools == tools and first.template_kwargs == {"enable_thinking": False}
    assert second.tools is None and lines_of(answers.path)[1].keys() == {"index", "prompt", "completion", "finish"}
