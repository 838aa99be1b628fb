"""Loading, comparing and measuring tokenizers."""

import json

import pytest
from small_tokenizers import SENTENCES, SPECIALS, build_tokenizer

from selecttkd_jax import data
from selecttkd_jax._errors import InputError


def test_equal_tokenizers_pass_and_padding_does_not_matter(tmp_path, chat_tokenizer):
    data.check_same_tokenizer(chat_tokenizer, build_tokenizer(tmp_path, pad_token="<|endoftext|>"))


def test_tokenizers_of_equal_size_but_other_ids_are_refused(tmp_path, chat_tokenizer):
    swapped = build_tokenizer(tmp_path, specials=[SPECIALS[0], SPECIALS[2], SPECIALS[1], SPECIALS[3]])
    assert len(swapped) == len(chat_tokenizer)
    with pytest.raises(
        InputError, match=r"id 1 is '<\|im_start\|>' for the teacher and '<\|im_end\|>' for the student"
    ):
        data.check_same_tokenizer(chat_tokenizer, swapped)


def test_tokenizers_of_equal_size_but_other_words_are_refused(tmp_path, chat_tokenizer):
    size = len(chat_tokenizer) - 20
    first = build_tokenizer(tmp_path / "a", vocab_size=size)
    second = build_tokenizer(tmp_path / "b", vocab_size=size, sentences=[text[::-1] for text in SENTENCES])
    assert len(first) == len(second)
    with pytest.raises(InputError, match="different tokenizers"):
        data.check_same_tokenizer(first, second)


def test_tokenizers_of_different_size_are_refused(tmp_path, chat_tokenizer):
    larger = build_tokenizer(tmp_path)
    larger.add_tokens(["<|tool|>"])
    size = len(chat_tokenizer)
    with pytest.raises(InputError, match=rf"id {size} is nothing .* and '<\|tool\|>' .*\({size} and {size + 1} tokens"):
        data.check_same_tokenizer(chat_tokenizer, larger)


def test_another_end_token_is_refused_with_the_cure(tmp_path, chat_tokenizer):
    other = build_tokenizer(tmp_path, eos_token="<|endoftext|>")
    with pytest.raises(InputError, match="disagree on eos_token: .*copy the teacher's tokenizer files"):
        data.check_same_tokenizer(chat_tokenizer, other)


def test_the_size_is_the_largest_id_plus_one(tmp_path, chat_tokenizer):
    assert data.tokenizer_size(chat_tokenizer) == len(chat_tokenizer)
    larger = build_tokenizer(tmp_path)
    larger.add_tokens(["<|tool|>"])
    assert data.tokenizer_size(larger) == len(chat_tokenizer) + 1


def test_stop_ids_join_generation_config_end_token_and_template(tmp_path):
    tokenizer = build_tokenizer(tmp_path, eos_token="<|endoftext|>")
    assert data.stop_ids(tokenizer) == (0, 2)  # a base model's end token, and the one its chat template writes
    config = tmp_path / "generation_config.json"
    for value, expected in [([3, 0], (3, 0, 2)), (2, (2, 0)), (None, (0, 2))]:
        config.write_text(json.dumps({"eos_token_id": value}))
        assert data.stop_ids(tokenizer, tmp_path) == data.stop_ids(tokenizer, str(tmp_path)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "generation_config.json is not valid JSON"),
        ('{"eos_token_id": "x"}', "must be an integer or a list"),
        ('{"eos_token_id": 99999}', "names eos_token_id 99999, which the tokenizer does not have"),
    ],
)
def test_a_broken_generation_config_is_refused(tmp_path, chat_tokenizer, text, message):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        data.stop_ids(chat_tokenizer, tmp_path)


def test_no_stop_id_at_all_is_refused(tmp_path):
    tokenizer = build_tokenizer(tmp_path, eos_token=None, pad_token=None, chat_template=None)
    with pytest.raises(InputError, match="no end token; set eos_token"):
        data.stop_ids(tokenizer, tmp_path)


def test_a_saved_tokenizer_loads_with_its_template(tmp_path, chat_tokenizer):
    loaded = data.load_tokenizer(chat_tokenizer.name_or_path)
    data.check_same_tokenizer(chat_tokenizer, loaded)
    assert loaded.chat_template == chat_tokenizer.chat_template


def test_missing_tokenizers_are_named(tmp_path):
    with pytest.raises(InputError, match="/absent' does not exist; give a directory or a hub name"):
        data.load_tokenizer(tmp_path / "absent")
    with pytest.raises(InputError, match="is empty; expected config.json"):
        data.load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no tokenizer in .*copy the model's tokenizer.json there"):
        data.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read \(") as caught:
        data.load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is a file; give the directory"):
        data.load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="the tokenizer in 'owner/missing-model' cannot be read"):
        data.load_tokenizer("owner/missing-model")
