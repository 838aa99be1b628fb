"""Prompts without responses as rows: what a model is given, no loss, and dropped where there is no room behind them."""

import numpy as np
import pytest

from selecttkd_jax import data
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Record
from selecttkd_jax.sources import split_prompts

QUESTION = {"role": "user", "content": "What is the capital?"}
ANSWER = {"role": "assistant", "content": "Paris."}
ALONE, ANSWERED = Record((QUESTION,), source="line 1"), Record((QUESTION,), (ANSWER,), source="line 2")
pytestmark = pytest.mark.one_stack


def tokenize(records, tokenizer, max_length=64, template="chat", **options):
    return data.tokenize_records(
        records, tokenizer, max_length, data.stop_ids(tokenizer), template, prompts_alone=True, **options
    )


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_row_is_what_a_model_is_given_to_answer(chat_tokenizer, template):
    rows = tokenize([ALONE, ANSWERED], chat_tokenizer, template=template)
    prompt = data.render_prompt(ALONE, chat_tokenizer, template)
    assert rows.tokens[0].tolist() == prompt and not rows.response[0].any()
    assert rows.tokens[1][: len(prompt)].tolist() == prompt and rows.response[1].any()
    assert rows.prompt_lengths == (len(prompt), len(prompt)) and rows.prompts_alone == 1
    assert rows.summary().endswith("; 1 rows are prompts alone")
    (batch,) = data.eval_batches(rows, 2, 64)
    assert not batch.loss_mask[0].any() and batch.segment_ids[0].sum() == len(prompt)
    for found in split_prompts(batch):
        assert found.tolist() == prompt


def test_a_conversation_may_end_with_the_user_or_a_tool_and_with_nobody_else(chat_tokenizer):
    turns = Record((QUESTION, ANSWER, QUESTION))
    (row,) = tokenize([turns], chat_tokenizer).tokens
    assert chat_tokenizer.decode(row).endswith("capital?<|im_end|>\n<|im_start|>assistant\n")
    tokenize([Record((QUESTION, {"role": "tool", "content": "Paris"}))], chat_tokenizer)
    for role in ("system", "assistant"):
        last = Record((QUESTION, {"role": role, "content": "x"}), source="prompts.jsonl line 4")
        with pytest.raises(InputError, match=f"^prompts.jsonl line 4 ends with a message of role {role}"):
            tokenize([last], chat_tokenizer)
    empty = Record(({"role": "user", "content": " \n"},), source="prompts.jsonl line 5")
    with pytest.raises(InputError, match="^prompts.jsonl line 5 has an empty prompt"):
        tokenize([empty], chat_tokenizer)
    assert len(tokenize([empty, ALONE], chat_tokenizer, skip_bad_rows=True)) == 1


def test_what_leaves_no_room_for_a_token_is_dropped_as_with_a_response(chat_tokenizer):
    length = len(data.render_prompt(ALONE, chat_tokenizer))
    for records in ([ALONE], [ANSWERED]):
        assert len(tokenize(records, chat_tokenizer, max_length=length + 1)) == 1
        with pytest.raises(InputError, match=f"the shortest prompt has {length} tokens, max_length is {length}"):
            tokenize(records, chat_tokenizer, max_length=length)
    long = Record(({"role": "user", "content": "What is the capital? " * 500},))
    rows = tokenize([long, ALONE], chat_tokenizer)
    assert (len(rows), rows.dropped, rows.cut) == (1, 1, 0)


def test_a_tokenizers_own_end_token_is_no_part_of_a_plain_prompt(tmp_path):
    from small_tokenizers import build_tokenizer
    from tokenizers import processors

    tokenizer = build_tokenizer(tmp_path, chat_template=None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)]
    )
    (row,) = tokenize([ALONE], tokenizer, template="plain").tokens
    np.testing.assert_array_equal(row, data.render_prompt(ALONE, tokenizer, "plain"))
    assert tokenizer.decode(row) == "What is the capital?"


def test_what_a_template_leaves_out_of_a_prompt_is_named(chat_tokenizer, caplog):
    tokenize([Record((QUESTION,), tools=[{"name": "search"}])], chat_tokenizer)
    assert "the chat template leaves out 'tools': in 1 of 1 rows" in caplog.text
