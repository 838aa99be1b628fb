"""`selecttkd generate` -> `selecttkd train`: killed, continued, and learned from."""

import json
from pathlib import Path

import pytest
from data.small_tokenizers import build_tokenizer
from runs import tiny_run

from selecttkd_jax import data, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.cli import main
from selecttkd_jax.generation import Sampling
from selecttkd_jax.runs import config_from_dict, config_to_dict

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]

OPTIONS = "--max-new-tokens 14 --temperature 1.5 --min-p 0.02 --slots 3 --seed 4".split()


@pytest.fixture(scope="module")
def prompts(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": " ".join(tiny_run.WORDS[n % 7 : n % 7 + 2 + n % 5])} for n in range(19)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generate(config, prompts, output, *options):
    return main(["generate", config.models.teacher, "--file", str(prompts), "--output", str(output), *options])


@pytest.fixture(scope="module")
def whole(config, prompts, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    assert generate(config, prompts, path, *OPTIONS) == 0
    return path


def test_each_row_says_how_its_answer_ended(whole, prompts, config, capsys):
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    asked = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    assert [row["prompt"][0]["content"] for row in rows] == asked
    counts = {finish: sum(row["finish"] == finish for row in rows) for finish in ("stop", "length", "empty")}
    assert counts["stop"] and counts["length"], counts
    assert generate(config, prompts, whole, *OPTIONS) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"19 answers, {counts['length']} cut at their limit, {counts['empty']} empty")


@pytest.mark.parametrize("answers", [1, 7, 18])
def test_a_killed_file_goes_on_to_the_same_content(whole, config, prompts, answers, tmp_path, monkeypatch):
    append = data.AnswerFile.append

    def die(self, index, completion, *, cut):
        append(self, index, completion, cut=cut)
        if len(self) == answers:
            raise KeyboardInterrupt

    path = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(data.AnswerFile, "append", die)
        assert generate(config, prompts, path, *OPTIONS) != 0
    assert len(path.read_text().splitlines()) == answers
    assert generate(config, prompts, path, *OPTIONS) == 0
    assert path.read_bytes() == whole.read_bytes()


def test_a_mesh_and_other_slots_write_the_same_file(whole, config, prompts, tmp_path):
    path = tmp_path / "answers.jsonl"
    assert generate(config, prompts, path, *OPTIONS, "--slots", "8", "--mesh.data", "2") == 0
    assert path.read_bytes() == whole.read_bytes()


def test_what_is_written_is_learned_from(whole, config, tmp_path):
    values = config_to_dict(config)
    values["output"] = str(tmp_path / "run")
    values["data"] |= {"train": str(whole), "held_out_rows": 4}
    del values["data"]["columns"]
    values["training"] |= {"steps": 2, "eval_every": 2}
    run = runs.train(config_from_dict(values, "answers"))
    assert Path(run.metrics).is_file()


def test_as_many_slots_as_the_memory_has_room_for(config, capsys):
    words = ["generate", config.models.teacher, "the cat", "a mat", "--max-new-tokens", "4", "--mesh.data", "2"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("--- the cat\n") and "2 slots: each takes" in err and "GiB a device are free" in err


@pytest.mark.parametrize("what", ["stop id", "prompt"])
def test_a_tokenizer_larger_than_its_model_is_refused_before_the_model_is_loaded(prompts, what, tmp_path, monkeypatch):
    tokenizer = build_tokenizer(tmp_path / "tokenizer")
    size = len(tokenizer) - 1 if what == "stop id" else 5
    tiny_run.write_teacher(tmp_path / "teacher", size)
    if what == "stop id":
        (tmp_path / "teacher" / "generation_config.json").write_text(json.dumps({"eos_token_id": size}))
    monkeypatch.setattr(runs._generate, "_load", lambda *_: pytest.fail("loaded"))
    message = rf"ends its turns with the token ids \[{size}\]" if what == "stop id" else "the prompt holds the token id"
    with pytest.raises(InputError, match=message):
        runs.generate(str(tmp_path / "teacher"), data.read_records(prompts)[:2], Sampling())
