"""The tokenizer that is loaded is the one on disk, and nothing that comes with a model is run or followed elsewhere."""

import json
import logging

import pytest
from small_tokenizers import SPECIALS, build_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from selecttkd_jax import data
from selecttkd_jax._errors import InputError

TEXT = "Do 123456 boats lie  still? a<|im_end|> b"


def write(directory, *, splits=None, model_type="llama", **config):
    """A byte-level tokenizer with a splitting of its own, and what the config files beside it say."""
    build_tokenizer(directory)
    if splits is not None:
        core = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(splits), "isolated"), byte_level])
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(["123 456 789 123456 456789 the boats lie still"] * 5, trainer)
        core.save(str(directory / "tokenizer.json"))
    edit(directory / "tokenizer_config.json", **config)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return directory


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def ids_of_the_file(directory, text):
    return Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "name", ["LlamaTokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast", None]
)
def test_whatever_the_class_is_called_the_ids_are_those_of_the_file(tmp_path, caplog, model_type, name):
    directory = write(tmp_path / "t", splits=r"\p{N}{1,3}", model_type=model_type, tokenizer_class=name)
    with caplog.at_level(logging.WARNING, "selecttkd_jax"):
        tokenizer = data.load_tokenizer(directory)
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids_of_the_file(directory, TEXT)
    assert tokenizer.is_fast and tokenizer.chat_template and tokenizer.eos_token == "<|im_end|>"
    by_name = name in ("Qwen2Tokenizer", "GPT2Tokenizer")
    replaced = by_name or model_type == "qwen2" or (name is None and model_type == "qwen3")
    said = warnings_of_ours(caplog)
    assert len(said) == replaced
    assert all("PreTrainedTokenizerFast" in line and "tokenizer.json is used as it is" in line for line in said)


def warnings_of_ours(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("selecttkd_jax")]


def test_a_tokenizer_that_agrees_is_loaded_without_a_word(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "selecttkd_jax"):
        data.load_tokenizer(write(tmp_path / "t"))
    assert not warnings_of_ours(caplog)


def test_settings_of_one_call_in_the_file_do_not_count(tmp_path, caplog):
    directory = write(tmp_path / "t")
    core = Tokenizer.from_file(str(directory / "tokenizer.json"))
    core.enable_truncation(3)
    core.enable_padding(length=50)
    core.save(str(directory / "tokenizer.json"))
    with caplog.at_level(logging.WARNING, "selecttkd_jax"):
        assert len(data.load_tokenizer(directory)(TEXT)["input_ids"]) > 3
    assert not warnings_of_ours(caplog)


def test_what_the_files_tokens_are_split_into_by_another_setting_is_refused(tmp_path):
    directory = write(tmp_path / "t", split_special_tokens=True)
    with pytest.raises(InputError, match=r"gives other ids than its tokenizer\.json: .*endoftext"):
        data.load_tokenizer(directory)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("code", [{"AutoTokenizer": ["evil.Evil", None]}, ["evil.Evil", None]])
def test_code_that_comes_with_a_model_is_refused_and_nobody_is_asked(tmp_path, monkeypatch, file, code):
    directory = write(tmp_path / "t")
    (directory / "evil.py").write_text("raise SystemExit('run')")
    edit(directory / file, auto_map=code)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(InputError, match=rf"{file}: auto_map names code that comes with the model .*evil\.Evil"):
        data.load_tokenizer(directory)
    edit(directory / file, auto_map={})
    data.load_tokenizer(directory)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_link_that_leads_out_of_the_directory_is_refused(tmp_path, name):
    directory = write(tmp_path / "t")
    (directory / name).rename(tmp_path / "outside")
    (directory / name).symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=rf"{name} leads out of"):
        data.load_tokenizer(directory)


BROKEN = {
    "nested brackets": ("tokenizer_config.json", "[" * 10_000 + "]" * 10_000, "nested more than"),
    "not an object": ("tokenizer_config.json", "[]", "must hold a JSON object"),
    "half a surrogate pair": ("tokenizer_config.json", r'{"eos_token": "\ud83d"}', "eos_token holds half a surrogate"),
    "digits": ("tokenizer_config.json", '{"model_max_length": 1%s}' % ("0" * 5000), "model_max_length is a number"),
    "a token of the wrong type": ("tokenizer_config.json", '{"eos_token": 7}', "cannot be read|eos"),
    "ids of the wrong type": (
        "tokenizer_config.json",
        '{"added_tokens_decoder": {"x": {"content": "a"}}}',
        "cannot be read",
    ),
    "torn": ("tokenizer.json", '{"version": "1.0"', r"tokenizer\.json cannot be read"),
    "nested tokenizer": ("tokenizer.json", "[" * 10_000 + "]" * 10_000, r"tokenizer\.json cannot be read"),
    "no model": ("tokenizer.json", '{"version": "1.0"}', r"tokenizer\.json cannot be read"),
    "surrogates in the vocabulary": (
        "tokenizer.json",
        r'{"version": "1.0", "model": {"type": "BPE", "vocab": {"\ud83d": 0}, "merges": []}}',
        r"tokenizer\.json cannot be read",
    ),
    "digits in config.json": (
        "config.json",
        '{"model_type": "llama", "eos_token_id": 1%s}' % ("0" * 400),
        "eos_token_id",
    ),
    "config.json is a list": ("config.json", "[1]", "must hold a JSON object"),
}


@pytest.mark.parametrize(("file", "text", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_named_in_one_line(tmp_path, file, text, message):
    directory = write(tmp_path / "t")
    (directory / file).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        data.load_tokenizer(directory)
    line = str(caught.value)
    assert str(directory) in line and "\n" not in line and len(line) < 600
    line.encode()


def test_a_sentencepiece_model_alone_names_what_converts_it(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"no tokenizer\.json, only tokenizer\.model, and .* no sentencepiece or"):
        data.load_tokenizer(tmp_path)


def test_a_home_directory_is_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = write(tmp_path / "t")
    (directory / "generation_config.json").write_text('{"eos_token_id": [3]}')
    tokenizer = data.load_tokenizer("~/t")
    assert data.stop_ids(tokenizer, "~/t") == (3, 2)
    with pytest.raises(InputError, match=f"{tmp_path}/absent' does not exist"):
        data.load_tokenizer("~/absent")
    with pytest.raises(InputError, match="no such home directory"):
        data.load_tokenizer("~nobody-of-this-name/t")


# Two tokenizers.


def test_a_padding_token_of_one_tokenizer_alone_does_not_matter(tmp_path, chat_tokenizer):
    padded = build_tokenizer(tmp_path / "a")
    padded.add_special_tokens({"pad_token": "<|pad|>"})
    other = build_tokenizer(tmp_path / "b")
    other.add_special_tokens({"pad_token": "[PAD]"})
    size = len(chat_tokenizer)
    for teacher, student in [(padded, chat_tokenizer), (chat_tokenizer, padded), (padded, other)]:
        data.check_same_tokenizer(teacher, student)
    assert data.tokenizer_size(padded) == size + 1
    assert data.tokenizer_size(padded, chat_tokenizer) == data.tokenizer_size(chat_tokenizer, padded) == size


def test_a_padding_token_in_the_place_of_another_token_matters(tmp_path):
    padded, other = build_tokenizer(tmp_path / "a"), build_tokenizer(tmp_path / "b")
    padded.add_special_tokens({"pad_token": "<|pad|>"})
    other.add_tokens(["<|tool|>"])
    for pair in [(padded, other), (other, padded)]:
        with pytest.raises(InputError, match="only added tokens differ: copy the teacher's tokenizer files"):
            data.check_same_tokenizer(*pair)


# Stop ids.


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [3, 0]}, {"eos_token_id": 5}, (3, 0, 2)),
        (None, {"eos_token_id": 3}, (3, 2)),
        (None, {"eos_token_id": [3, 0]}, (3, 0, 2)),
        ({}, {"eos_token_id": 3}, (3, 2)),
        (None, {}, (2,)),
    ],
)
def test_config_json_is_asked_where_generation_config_names_none(
    tmp_path, chat_tokenizer, generation, config, expected
):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert data.stop_ids(chat_tokenizer, tmp_path) == expected


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("value", ["2", True, 1.5, [2, None], [[2]], {"a": 2}, -1, 10**6, 10**30])
def test_stop_ids_that_are_none_are_refused_by_file(tmp_path, chat_tokenizer, file, value):
    (tmp_path / file).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(InputError, match=rf"{file}.*(must be an integer or a list|the tokenizer does not have)"):
        data.stop_ids(chat_tokenizer, tmp_path)
