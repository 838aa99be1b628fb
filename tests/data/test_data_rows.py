"""Which tokens carry loss: spelled out by hand, template by template."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from small_tokenizers import CHATML, CHATML_MARKED, build_tokenizer

from selecttkd_jax import data
from selecttkd_jax._errors import InputError
from selecttkd_jax.data._records import Record

END = "<|im_end|>"


def say(role, content):
    return {"role": role, "content": content}


def record(*messages, prompt_length=1):
    return Record(tuple(messages[:prompt_length]), tuple(messages[prompt_length:]))


def question(prompt="What is the capital of France?", answer="The capital of France is Paris."):
    return record(say("user", prompt), say("assistant", answer))


def with_template(tokenizer, template):
    changed = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    changed.chat_template = template
    return changed


def tokenize(records, tokenizer, max_length=512, template="chat", stops=None):
    stops = data.stop_ids(tokenizer) if stops is None else stops
    return data.tokenize_records(records, tokenizer, max_length, stops, template)


def learned_texts(rows, tokenizer, row=0):
    """The text of each unbroken run of tokens that carry loss."""
    tokens, mask = rows.tokens[row], rows.response[row]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [tokenizer.decode(tokens[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_loss_covers_the_response_and_its_end_token_though_pad_equals_eos(chat_tokenizer):
    assert chat_tokenizer.pad_token_id == chat_tokenizer.eos_token_id
    rows = tokenize([question()], chat_tokenizer)
    expected = (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\nThe capital of France is Paris.<|im_end|>\n"
    )
    assert chat_tokenizer.decode(rows.tokens[0]) == expected
    assert learned_texts(rows, chat_tokenizer) == ["The capital of France is Paris." + END]
    batch = data.eval_batches(rows, 2, 100)[0]
    learned = batch.labels[batch.loss_mask]
    assert learned[-1] == chat_tokenizer.eos_token_id
    answer = chat_tokenizer("The capital of France is Paris.").input_ids
    assert batch.loss_mask.sum() == rows.response_tokens == len(answer) + 1


def test_every_assistant_turn_counts_and_nothing_else(chat_tokenizer):
    conversation = record(
        say("system", "assistant"),
        say("user", "How many eggs? seven"),
        say("assistant", "seven"),
        say("user", "seven"),
        say("assistant", "Thank you!\n goodbye"),
        say("user", "goodbye"),
        prompt_length=2,
    )
    rows = tokenize([conversation], chat_tokenizer)
    assert learned_texts(rows, chat_tokenizer) == ["seven" + END, "Thank you!\n goodbye" + END]


def test_assistant_turns_within_a_prompt_are_prompt(chat_tokenizer):
    messages = [say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d")]
    rows = tokenize([record(*messages, prompt_length=3)], chat_tokenizer)
    assert learned_texts(rows, chat_tokenizer) == ["d" + END]


def test_the_mask_does_not_depend_on_generation_marks(chat_tokenizer):
    marked = with_template(chat_tokenizer, CHATML_MARKED)
    records = [question(), record(say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d"))]
    ours, theirs = tokenize(records, chat_tokenizer), tokenize(records, marked)
    for row in range(2):
        np.testing.assert_array_equal(ours.tokens[row], theirs.tokens[row])
        np.testing.assert_array_equal(ours.response[row], theirs.response[row])
    oracle = marked.apply_chat_template(
        [*records[1].prompt, *records[1].response], return_assistant_tokens_mask=True, return_dict=True
    )
    np.testing.assert_array_equal(theirs.response[1], np.array(oracle["assistant_masks"], bool))


def test_any_of_several_stop_ids_ends_the_turn(chat_tokenizer):
    other = with_template(chat_tokenizer, CHATML.replace(END, "<|other_end|>"))
    stops = chat_tokenizer.convert_tokens_to_ids(["<|endoftext|>", END, "<|other_end|>"])
    answer = question().response[0]["content"]
    assert learned_texts(tokenize([question()], other, stops=stops), other) == [answer + "<|other_end|>"]
    assert learned_texts(tokenize([question()], chat_tokenizer, stops=stops), chat_tokenizer) == [answer + END]


def test_a_turn_that_nothing_closes_is_reported_and_stays_within_its_text(chat_tokenizer, caplog):
    no_end = with_template(
        chat_tokenizer,
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{% if m['role'] == 'user' %}{{ '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    )
    messages = record(say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d"))
    with caplog.at_level(logging.WARNING):
        rows = tokenize([messages], no_end)
    assert [text.strip() for text in learned_texts(rows, no_end)] == ["b", "d"]
    assert "1 of 1 rows" in caplog.text and "end-of-turn" in caplog.text


def test_templates_that_trim_or_open_a_thought_are_followed(chat_tokenizer):
    """The last turn shows an empty thought, earlier turns do not; the generation prompt opens one."""
    thinking = with_template(
        chat_tokenizer,
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m['content'] | trim }}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
    )
    messages = record(say("user", "a"), say("assistant", " b\n"), say("user", "c"), say("assistant", "\n d "))
    rows = tokenize([messages], thinking)
    first, last = learned_texts(rows, thinking)
    assert first == "b" + END
    assert last.lstrip("\n") == "</think>\n\nd" + END


def test_a_template_that_writes_the_date_gives_the_same_rows_every_day(chat_tokenizer):
    dated = with_template(
        chat_tokenizer, "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}\n" + CHATML
    )
    assert dated.decode(tokenize([question()], dated).tokens[0]).startswith("26 Jul 2024\n")
    assert dated.decode(data.render_prompt(question(), dated)).startswith("26 Jul 2024\n")


def test_a_template_that_rewrites_the_past_is_refused(chat_tokenizer):
    counting = with_template(
        chat_tokenizer, "{{ messages | length }}{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(InputError, match="chat template writes earlier messages differently"):
        tokenize([question()], counting)


def test_a_template_that_refuses_a_message_names_the_record(chat_tokenizer):
    strict = with_template(chat_tokenizer, "{{ raise_exception('Only user and assistant roles are supported!') }}")
    with pytest.raises(InputError, match="train.jsonl line 3: .*Only user and assistant roles"):
        tokenize([dataclasses.replace(question(), source="train.jsonl line 3")], strict, stops=[1])


def test_plain_rows_are_prompt_completion_end_token(base_tokenizer):
    rows = tokenize([question("What is ", "the capital?")], base_tokenizer, template="plain")
    assert base_tokenizer.decode(rows.tokens[0]) == "<|im_start|>What is the capital?<|endoftext|>"
    assert learned_texts(rows, base_tokenizer) == [" the capital?<|endoftext|>"]  # one token holds the space and "the"
    assert rows.response[0][-1]


def test_a_rows_first_token_is_never_learned(chat_tokenizer):
    rows = tokenize([question("", "seven eggs")], chat_tokenizer, template="plain")
    assert not rows.response[0][0] and rows.response[0][1:].all()


@pytest.mark.parametrize(
    "conversation",
    [
        record(say("system", "a"), say("user", "b"), say("assistant", "c"), prompt_length=2),
        record(say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d")),
    ],
)
def test_plain_refuses_conversations(base_tokenizer, conversation):
    with pytest.raises(InputError, match='template = "plain"'):
        tokenize([conversation], base_tokenizer, template="plain")


def test_the_template_must_fit_the_tokenizer(base_tokenizer, chat_tokenizer):
    with pytest.raises(InputError, match='no chat template; use template = "plain"'):
        tokenize([question()], base_tokenizer)
    with pytest.raises(InputError, match="did you mean 'plain'"):
        tokenize([question()], chat_tokenizer, template="plane")


def test_long_rows_lose_their_end_and_rows_without_room_are_dropped(chat_tokenizer):
    records = [question(), question(prompt="What is the capital? " * 9), question(answer="seven")]
    whole = tokenize(records, chat_tokenizer)
    lengths = [len(row) for row in whole.tokens]
    prompt_length = int(whole.response[0].argmax())
    limit = lengths[2] - 1  # the short answer loses only the line break behind its end token: it is not cut
    assert prompt_length + 3 < limit < lengths[0]
    rows = tokenize(records, chat_tokenizer, max_length=limit)
    assert (len(rows), rows.read, rows.cut, rows.dropped) == (2, 3, 1, 1)
    np.testing.assert_array_equal(rows.tokens[0], whole.tokens[0][:limit])
    np.testing.assert_array_equal(rows.response[0], whole.response[0][:limit])
    assert chat_tokenizer.eos_token_id not in rows.tokens[0][rows.response[0]]
    # A prompt that leaves room for exactly one response token is kept, one token less drops it.
    assert tokenize(records[:1], chat_tokenizer, max_length=prompt_length + 1).response_tokens == 1
    with pytest.raises(InputError, match=f"no row of the data is left: the shortest prompt has {prompt_length} tokens"):
        tokenize(records[:1], chat_tokenizer, max_length=prompt_length)


def test_the_summary_counts(chat_tokenizer):
    rows = tokenize([question(), question(prompt="How many? " * 99)], chat_tokenizer, max_length=60)
    total, learned = len(rows.tokens[0]), int(rows.response[0].sum())
    assert (rows.total_tokens, rows.response_tokens) == (total, learned)
    assert rows.summary() == (
        f"1 of 2 rows kept: 0 cut at 60 tokens, 1 dropped (prompt too long); {learned} of {total} tokens "
        f"({100 * learned / total:.1f} %) carry loss"
    )


def test_records_without_a_response_are_refused_with_the_cure(chat_tokenizer):
    alone = Record((say("user", "a"),), source="prompts.jsonl line 2")
    with pytest.raises(InputError, match="prompts.jsonl line 2 has a prompt but no response.*columns"):
        tokenize([question(), alone], chat_tokenizer)
    with pytest.raises(InputError, match="no row of the data is left: there are no records"):
        tokenize([], chat_tokenizer)


def test_prompts_for_generation_are_what_precedes_the_response(chat_tokenizer, base_tokenizer):
    alone = Record((say("user", "What is the capital?"),))
    text = "<|im_start|>user\nWhat is the capital?<|im_end|>\n<|im_start|>assistant\n"
    assert chat_tokenizer.decode(data.render_prompt(alone, chat_tokenizer)) == text
    rows = tokenize([question()], chat_tokenizer)
    prompt = data.render_prompt(question(), chat_tokenizer)
    assert prompt == rows.tokens[0][: len(prompt)].tolist() and rows.response[0].argmax() == len(prompt)
    chat = record(say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d"))
    assert chat_tokenizer.decode(data.render_prompt(chat, chat_tokenizer)).endswith(
        "\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )
    plain = data.render_prompt(alone, base_tokenizer, "plain")
    assert base_tokenizer.decode(plain) == "<|im_start|>What is the capital?"


def test_many_records_come_back_in_order(chat_tokenizer, monkeypatch):
    monkeypatch.setattr("selecttkd_jax.data._tokenize._CHUNK_CHARACTERS", 300)  # three of them
    rows = tokenize([question(answer=f"{number} eggs") for number in range(8)], chat_tokenizer)
    assert [learned_texts(rows, chat_tokenizer, row)[0] for row in range(8)] == [f"{n} eggs{END}" for n in range(8)]


def test_a_file_becomes_rows(tmp_path, chat_tokenizer):
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps({"question": "How many eggs?", "answer": "seven"}) + "\n")
    rows = tokenize(data.read_records(file, columns=("question", "answer")), chat_tokenizer)
    assert learned_texts(rows, chat_tokenizer) == ["seven" + END]


def test_a_tokenizer_that_ends_texts_by_itself_does_not_end_them_twice(tmp_path):
    from tokenizers import processors

    tokenizer = build_tokenizer(tmp_path, chat_template=None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)]
    )
    rows = tokenize([question("a ", "b")], tokenizer, template="plain")
    assert tokenizer.decode(rows.tokens[0]) == "a b<|im_end|>"
    assert tokenizer.decode(data.render_prompt(question("a ", "b"), tokenizer, "plain")) == "a "
