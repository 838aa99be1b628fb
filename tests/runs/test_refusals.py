"""What a method asks of the data and the models, said in a line before a model is loaded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from runs import tiny_run

from selecttkd_jax import models
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods import DistiLlm, DistiLlm2, Gkd, ImitKd, Kd, OnPolicyKd, SeqKd, Sft
from selecttkd_jax.runs import _prepare

pytestmark = pytest.mark.one_stack
SAMPLING = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = tiny_run.build(tmp_path_factory.mktemp("tiny"))
    (Path(config.models.student) / "generation_config.json").unlink()
    rows = [json.loads(line) for line in Path(config.data.train).read_text().splitlines()]
    answered = [{"prompt": row["question"], "completion": row["answer"]} for row in rows]
    directory = Path(config.output).parent
    held_out = write(directory / "held_out.jsonl", answered[-5:])
    data = replace(config.data, columns=None, held_out=held_out, train=write(directory / "answered.jsonl", answered))
    return replace(config, data=data, objective=ObjectiveConfig())


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "from_pretrained", load)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepare(config, method, **data):
    return _prepare.prepare(replace(config, method=method, data=replace(config.data, **data)))


@pytest.fixture(scope="module")
def prompts(config):
    rows = [json.loads(line) for line in Path(config.data.train).read_text().splitlines()]
    return write(Path(config.output).parent / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows])


WRITTEN = [
    OnPolicyKd(sampling=SAMPLING),
    SeqKd(sampling=SAMPLING),
    Gkd(student_share=1.0, sampling=SAMPLING),
    DistiLlm(threshold=1.0, sampling=SAMPLING),
    DistiLlm2(sampling=SAMPLING),
]
READ = [
    Kd(),
    Sft(),
    ImitKd(sampling=SAMPLING),
    Gkd(sampling=SAMPLING),
    DistiLlm(threshold=0.9, sampling=SAMPLING),
    DistiLlm2(teacher_text="stored", sampling=SAMPLING),
]


@pytest.mark.parametrize("method", WRITTEN, ids=lambda method: method.name)
def test_a_method_whose_text_is_written_takes_prompts_alone(config, prompts, method):
    rows = prepare(config, method, train=prompts).train_rows
    assert rows.prompts_alone == len(rows) == 23
    assert rows.prompt_lengths == prepare(config, method).train_rows.prompt_lengths


@pytest.mark.parametrize("method", READ, ids=lambda method: method.name)
def test_a_method_that_learns_from_stored_responses_names_the_row_without_one(config, prompts, method, tmp_path):
    with pytest.raises(InputError, match=f"prompts.jsonl has prompts alone, and method {method.name}, as it is set,"):
        prepare(config, method, train=prompts)
    rows = [{"prompt": "the cat", "completion": "sat"}, {"prompt": "the cat"}]
    with pytest.raises(InputError, match=r"some\.jsonl line 2 has a prompt but no response to learn from"):
        prepare(config, method, train=write(tmp_path / "some.jsonl", rows))


def test_a_student_is_measured_on_responses(config, prompts):
    with pytest.raises(
        InputError, match=r"prompts\.jsonl line 19 has no response, .* the last 5 rows .* name data\.held_out"
    ):
        prepare(config, WRITTEN[0], train=prompts, held_out=None)
    with pytest.raises(InputError, match=r"prompts\.jsonl line 1 has no response, .* held-out responses"):
        prepare(config, WRITTEN[0], train=prompts, held_out=prompts)
    rows = [{"prompt": "the cat", "completion": "sat"}, {"prompt": "the cat"}]
    half = write(Path(prompts).with_name("half.jsonl"), rows)
    with pytest.raises(InputError, match=r"half\.jsonl line 2 has no response"):
        prepare(config, WRITTEN[0], held_out=half)
    assert len(prepare(config, WRITTEN[0], held_out=half, skip_bad_rows=True).held_out_rows) == 1
    with pytest.raises(InputError, match=r"prompts\.jsonl line 1 has no response, .* held-out responses"):
        _prepare.read_held_out(replace(config.data, held_out=prompts))


def test_a_students_response_that_nobody_looks_at_is_counted(config, tmp_path, caplog):
    pair = {"prompt": "the cat", "teacher_response": "sat", "student_response": "ate"}
    file = write(tmp_path / "pairs.jsonl", [pair, pair, {"prompt": "the cat", "completion": "sat"}])
    prepare(config, Kd(), train=file)
    (line,) = [record.getMessage() for record in caplog.records if "student_response" in record.getMessage()]
    assert line.startswith("2 of 3 training records have a student_response, which method kd, as it is set, does not")
    assert "distillm2" in line
    caplog.clear()
    prepare(config, Kd())
    assert "student_response" not in caplog.text


def test_the_teachers_stored_text_is_the_teacher_response(config, tmp_path):
    pairs = write(
        tmp_path / "pairs.jsonl", [{"prompt": "the cat", "teacher_response": "sat on", "student_response": "ate"}]
    )
    plain = write(tmp_path / "plain.jsonl", [{"prompt": "the cat", "completion": "sat on"}])
    method = DistiLlm2(teacher_text="stored", sampling=SAMPLING)
    assert prepare(config, method, train=pairs).train_rows.fingerprint == (
        prepare(config, method, train=plain).train_rows.fingerprint
    )


def test_an_empty_prompt_is_nothing_to_answer(config, tmp_path, caplog):
    rows = [{"prompt": "the cat", "completion": "sat"}, {"prompt": " ", "completion": "sat"}]
    file = write(tmp_path / "blank.jsonl", rows)
    with pytest.raises(InputError, match=r"blank\.jsonl line 2 has an empty prompt \(1 of 2 records do\)"):
        prepare(config, Gkd(sampling=SAMPLING), train=file)
    assert len(prepare(config, Gkd(sampling=SAMPLING), train=file, skip_bad_rows=True).train_rows) == 1
    assert "1 of 2 training records have an empty prompt and are skipped" in caplog.text
    assert len(prepare(config, Kd(), train=file).train_rows) == 2


def with_positions(config, tmp_path, role, positions):
    """The run with a copy of one model that was made for fewer positions."""
    source, copy = Path(getattr(config.models, role)), tmp_path / role
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | {"max_position_embeddings": positions}))
    return replace(config, models=replace(config.models, **{role: str(copy)}))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_an_answer_has_to_fit_the_positions_of_both_models(config, prompts, tmp_path, role):
    method = OnPolicyKd(sampling=Sampling(max_new_tokens=20))
    longest = max(prepare(config, method, train=prompts).train_rows.prompt_lengths)
    assert 28 < longest + 20 <= 48
    fitting, short = longest + 20, longest + 19
    fits = with_positions(config, tmp_path, role, fitting)
    assert prepare(fits, method, train=prompts)
    (tmp_path / "short").mkdir()
    tight = with_positions(config, tmp_path / "short", role, short)
    with pytest.raises(
        InputError,
        match=f"max_new_tokens = 20 tokens to the longest prompt, of {longest}, .* past the {short} positions that the "
        f"{role} .* lower data.max_length to {short}, .* or max_new_tokens to 19$",
    ):
        prepare(tight, method, train=prompts)
    prepare(tight, method, train=prompts, max_length=short)
    # A prompt that fills them all.
    prepared = prepare(config, method, train=prompts)
    full = replace(prepared.pair, **{role: replace(getattr(prepared.pair, role), max_positions=longest)})
    with pytest.raises(InputError, match=f"lower data.max_length to {longest}, where answers are cut$"):
        _prepare.check_written(full, 20, 48, prepared.train_rows)


def test_a_stop_id_that_nobody_can_write_is_refused(config, tmp_path, monkeypatch):
    vocab_size = _prepare.check_models(config)[0].vocab_size
    stops = _prepare.data.stop_ids
    monkeypatch.setattr(_prepare.data, "stop_ids", lambda *about: (*stops(*about), vocab_size))
    with pytest.raises(InputError, match=f"stop at the id {vocab_size}, which nobody can write: .* below {vocab_size}"):
        prepare(config, WRITTEN[0])
    assert prepare(config, Kd()).stop_ids == (2, vocab_size)


def test_a_tokenizer_without_any_end_is_refused(config, tmp_path):
    copies = {}
    for role in ("teacher", "student"):
        copies[role] = tmp_path / role
        copies[role].mkdir()
        for file in Path(getattr(config.models, role)).iterdir():
            (copies[role] / file.name).write_bytes(file.read_bytes())
        path = copies[role] / "tokenizer_config.json"
        content = json.loads(path.read_text())
        content = {name: value for name, value in content.items() if name not in ("eos_token", "pad_token")}
        template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        path.write_text(json.dumps(content | {"chat_template": template}))
        (copies[role] / "chat_template.jinja").unlink(missing_ok=True)
        (copies[role] / "special_tokens_map.json").unlink(missing_ok=True)
        names = json.loads((copies[role] / "config.json").read_text())
        names.pop("eos_token_id", None)
        (copies[role] / "config.json").write_text(json.dumps(names))
    endless = replace(
        config, models=replace(config.models, teacher=str(copies["teacher"]), student=str(copies["student"]))
    )
    with pytest.raises(InputError, match="the tokenizer has no end token; set eos_token in its tokenizer_config.json"):
        prepare(endless, WRITTEN[0])


def test_a_method_says_what_it_reads():
    assert [method.reads for method in WRITTEN] == [()] * len(WRITTEN)
    assert [method.reads for method in READ] == [("response",)] * len(READ)
