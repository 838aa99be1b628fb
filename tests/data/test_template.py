"""What a template is told, and how far it may go."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import CHATML, build_tokenizer

from selecttkd_jax import data
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Record

DATED = "{{ '<|im_start|>' + strftime_now('%d %B %Y %H:%M') + '<|im_end|>' }}" + CHATML


def pair(prompt="What is the capital?", answer="Paris.", **more):
    return Record(({"role": "user", "content": prompt},), ({"role": "assistant", "content": answer},), **more)


@pytest.fixture
def tokenizer(tmp_path):
    return build_tokenizer(tmp_path)


def first_row(tokenizer, record, **options):
    return tokenizer.decode(
        data.tokenize_records([record], tokenizer, 999, data.stop_ids(tokenizer), **options).tokens[0]
    )


def test_a_template_that_asks_for_the_date_is_told_the_runs(tokenizer):
    for template, shown in ((DATED, "02 January 2026 00:00"), ("{{ date_string }}" + CHATML, "02 Jan 2026")):
        tokenizer.chat_template = template
        row = first_row(tokenizer, pair(), date="2026-01-02")
        assert shown in row
        prompt = tokenizer.decode(data.render_prompt(pair(), tokenizer, date="2026-01-02"))
        assert row.startswith(prompt)
    tokenizer.chat_template = DATED
    assert "26 July 2024" in first_row(tokenizer, pair())  # the same on every day
    assert "26 July 2024" not in tokenizer.apply_chat_template(
        [pair().prompt[0]], tokenize=False
    )  # others have a clock
    tokenizer.chat_template = "{{ date_string }}" + CHATML
    assert "one day" in first_row(tokenizer, pair(), template_kwargs={"date_string": "one day"})


def test_a_date_is_a_date():
    assert data.DataConfig(train="a.jsonl").date == data.RUN_DATE
    with pytest.raises(InputError, match=r"data.date must be a date such as 2024-07-26, got '1.2.2026'"):
        data.DataConfig(train="a.jsonl", date="1.2.2026")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "loops .* without end"),
        ("{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "makes more than 10,000,000 characters"),
        ("{{ 'x' * 5000000000 }}", "repeats a text millions of times"),
        (
            "{% set ns = namespace(n=7) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
            "thousands of",
        ),
        ("{{ 9 ** 9 ** 9 }}", "computes powers"),
        ("{{ 'x'.ljust(5000000000) }}", "asks for gigabytes"),
        ("{{ 'x' | center(5000000000) }}", "asks for gigabytes"),
        (
            "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
            "gigabytes",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "loops"),
        ("{% if add_generation_prompt %}{{ 'x'.ljust(5000000000) }}{% endif %}" + CHATML, "gigabytes"),
        ("{% if %}", "is not valid: .* line 1"),
    ],
)
def test_a_template_that_goes_too_far_is_refused_before_it_goes_there(tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=f"the chat template .*{message}") as caught:
        data.stop_ids(tokenizer)
    with pytest.raises(InputError, match=message):
        data.render_prompt(pair(), tokenizer)
    assert "\n" not in str(caught.value)


def test_constants_that_nothing_uses_are_not_computed(tokenizer):
    tokenizer.chat_template = "{% if false %}{{ 'x' * 5000000000 }}{% endif %}" + CHATML
    tracemalloc.start()
    first_row(tokenizer, pair())
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()


@pytest.mark.parametrize("code", ["{{ messages.x.y }}", "{{ 1 / 0 }}", "{{ messages + 1 }}", "{{ messages[7].role }}"])
def test_whatever_a_template_raises_names_the_record(tokenizer, code):
    tokenizer.chat_template = CHATML + code
    with pytest.raises(InputError, match="a.jsonl line 3: the chat template refuses these messages: ") as caught:
        data.tokenize_records([pair(source="a.jsonl line 3")], tokenizer, 99, [1])
    assert "\n" not in str(caught.value)


def test_of_named_templates_the_one_for_tools_is_used_with_tools(tokenizer):
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools[0].name }}" + CHATML}
    assert first_row(tokenizer, pair(tools=[{"name": "add"}])).startswith("add<|im_start|>")
    assert first_row(tokenizer, pair()).startswith("<|im_start|>")
    tokenizer.chat_template = {"tool_use": CHATML}
    with pytest.raises(InputError, match="no default specified"):
        first_row(tokenizer, pair())


def test_half_a_surrogate_pair_is_named_and_others_are_kept(tokenizer, caplog):
    records = [pair(), pair(answer="yes \ud83d no", source="a.jsonl line 7"), pair(answer="no")]
    with pytest.raises(
        InputError, match=r"^a.jsonl line 7 holds half a surrogate pair \('\\ud83d'\), which is no text$"
    ):
        data.tokenize_records(records, tokenizer, 99, data.stop_ids(tokenizer))
    with pytest.raises(InputError, match="line 7 holds half"):
        data.render_prompt(pair(prompt="\ud83d", source="line 7"), tokenizer)
    rows = data.tokenize_records(records, tokenizer, 99, data.stop_ids(tokenizer), skip_bad_rows=True)
    assert len(rows) == 2 and "1 of 3 rows are skipped: a.jsonl line 7" in caplog.text


def test_all_rows_that_a_template_refuses_are_named_at_once(tokenizer):
    tokenizer.chat_template = "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    records = [pair(prompt="bad", source=f"line {n}") if n % 2 else pair() for n in range(8)]
    with pytest.raises(
        InputError, match="4 of 8 rows of the data cannot be used: line 1: .*; line 3: .*; line 7: .*mend"
    ):
        data.tokenize_records(records, tokenizer, 99, data.stop_ids(tokenizer))
    assert len(data.tokenize_records(records, tokenizer, 99, data.stop_ids(tokenizer), skip_bad_rows=True)) == 4


words = st.text(alphabet="abc \n.,!é你<>|", max_size=300)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=words, answer=words.filter(str.strip), repeats=st.integers(1, 120), length=st.integers(40, 80))
def test_what_is_cut_before_it_is_tokenised_would_have_been_cut_behind(tokenizer, prompt, answer, repeats, length):
    records = [pair(prompt, answer * repeats), pair()]
    whole = data.tokenize_records(records, tokenizer, 100_000, data.stop_ids(tokenizer))
    rows = data.tokenize_records(records, tokenizer, length, data.stop_ids(tokenizer))
    kept = [index for index in range(2) if whole.response[index][:length].any()]
    assert len(rows) == len(kept) and rows.dropped == 2 - len(kept)
    for row, index in enumerate(kept):
        np.testing.assert_array_equal(rows.tokens[row], whole.tokens[index][:length])
        np.testing.assert_array_equal(rows.response[row], whole.response[index][:length])
    assert rows.cut == sum(bool(whole.response[index][length:].any()) for index in kept)


def test_an_answer_behind_what_is_not_tokenised_is_cut(tokenizer):
    first, last = pair(answer="yes"), pair("Why? " * 9_000, "so")
    chat = Record(first.prompt, (*first.response, *last.prompt, *last.response))
    rows = data.tokenize_records([chat], tokenizer, 64, data.stop_ids(tokenizer))
    assert (len(rows), rows.cut, rows.response_tokens) == (1, 1, len(tokenizer("yes<|im_end|>").input_ids))


def test_long_texts_cost_the_memory_of_short_rows(tokenizer):
    records = [pair(answer="seven eggs a day " * 30_000) for _ in range(4)]  # 2 MB
    tracemalloc.start()
    rows = data.tokenize_records(records, tokenizer, 64, data.stop_ids(tokenizer))
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()
    assert len(rows) == rows.cut == 4
