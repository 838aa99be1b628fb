"""The command line: help that reads, and mistakes answered in one line with exit code 2."""

import json
import shutil
from pathlib import Path

import pytest
from runs.tiny_run import with_output

from selecttkd_jax.cli import COMMANDS, main
from selecttkd_jax.runs import save_config


@pytest.fixture
def run_files(config, tmp_path):
    """A private copy of a tiny run's files, and its configuration file."""
    root = Path(config.models.teacher).parent
    shutil.copytree(root, tmp_path / "tiny")
    text = (tmp_path / "config.toml").as_posix()
    save_config(with_output(config, tmp_path / "run"), Path(text))
    Path(text).write_text(Path(text).read_text().replace(str(root), str(tmp_path / "tiny")))
    return tmp_path


def refused(capsys, *words):
    """The one line that a mistake is answered with."""
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("selecttkd: error: ")]
    assert len(errors) == 1 and "Traceback" not in err and not out
    return errors[0]


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_reads_on_its_own(command, capsys):
    assert main([command, "--help"] if command else ["--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: selecttkd" in out
    assert all(name in out for name in ("convert", "prune", "train", "generate", "evaluate", "plot")) or command


def test_the_help_of_train_knows_the_sections_that_may_be_left_out(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--lora.rank INT" in out and "Without a [lora] section" in out


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_help_knows_the_flags_of_several_hosts(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(flag in out for flag in ("--coordinator HOST:PORT", "--num-processes N", "--process-id I"))


def break_model(name, change):
    def apply(root):
        path = root / "tiny" / name / "config.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return apply


def truncate(root):
    path = root / "tiny" / "student" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def swap_two_tokens(root):
    path = root / "tiny" / "student" / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    first, second = "!", '"'
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(values))


def rows(text):
    return lambda root: (root / "tiny" / "rows.jsonl").write_text(text)


BAD = {
    "missing model": (lambda root: shutil.rmtree(root / "tiny" / "teacher"), ["teacher", "does not exist"]),
    "empty model": (
        lambda root: (shutil.rmtree(root / "tiny" / "teacher"), (root / "tiny" / "teacher").mkdir()),
        ["teacher", "config.json"],
    ),
    "model type": (break_model("teacher", lambda c: c.update(model_type="gpt2")), ["model_type", "gpt2", "qwen3"]),
    "unknown HF field": (break_model("student", lambda c: c.update(hidden_sizes=3)), ["hidden_sizes"]),
    "contradictory HF fields": (break_model("student", lambda c: c.update(num_attention_heads=3)), ["student"]),
    "truncated weights": (truncate, ["model.safetensors"]),
    "other tokenizer of equal size": (swap_two_tokens, ["tokenizer"]),
    "empty data": (rows(""), ["rows.jsonl"]),
    "broken line": (rows('{"question": "a", "answer": "b"}\n{"question": \n'), ["rows.jsonl", "line 2"]),
    "unknown shape": (rows('{"foo": 1}\n'), ["rows.jsonl", "line 1", "foo"]),
    "empty response": (rows('{"question": "a", "answer": ""}\n'), ["rows.jsonl", "line 1"]),
    "no row left": (rows(json.dumps({"question": "the cat " * 99, "answer": "a"}) * 1 + "\n"), ["row"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_in_one_line_and_nothing_is_written(case, run_files, capsys):
    spoil, expected = BAD[case]
    spoil(run_files)
    overrides = ["--data.held-out", run_files / "tiny" / "rows.jsonl"] if "rows.jsonl" in str(expected) else []
    line = refused(capsys, "train", run_files / "config.toml", *overrides)
    assert all(word in line for word in expected), line
    assert not (run_files / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--objective.k", "0"], "objective.k must be at least 1, got 0"),
        (["--objective.floor", "1.5"], "objective.floor must be in [0.0, 1.0], got 1.5"),
        (["--objective.alpha", "1"], "objective.alpha must be in [0, 1), got 1"),
        (["--objective.divergence", "forward_lk"], "did you mean 'forward_kl'?"),
        (["--objective.mu", "0.3"], "objective.mu is an option of adaptive_kl, not of skew_kl"),
        (["--training.stepz", "3"], "--training.steps"),
        (["--optimizer.learning-rate", "fast"], "fast"),
        (["--training.micro-batches", "3"], "micro_batches must divide"),
        (["--mesh.fsdp", "16"], "data 1 x fsdp 16 x tensor 1 needs 16 devices, but this machine has 8"),
        (
            ["--mesh.fsdp", "-1"],
            "data.batch_size / training.micro_batches = 2 does not divide over mesh data 1 x fsdp 8",
        ),
        (["--mesh.tensor", "4"], "H = 2 does not divide over tensor = 4; choose a mesh.tensor that divides 2"),
        (["--mesh.student", "fdsp"], "did you mean 'fsdp'?"),
        (["--coordinator", "somewhere", "--num-processes", "2", "--process-id", "0"], "must be HOST:PORT"),
        (["--process-id", "0"], "--process-id 0 needs --coordinator and --num-processes, too"),
        (["--output", "gs://bucket/run"], "output gs://bucket/run is a URL; name a directory"),
        (["--num-processes", "two"], "--num-processes must be a whole number, got 'two'"),
        (["--lora.rank", "0"], "lora.rank must be at least 1, got 0"),
        (["--lora.targets", "q_porj"], "did you mean 'q_proj'?"),
        (["--models.student-dtype", "bfloat16"], "without a [lora] section all weights are trained"),
    ],
)
def test_bad_options_are_named_in_one_line(words, expected, run_files, capsys):
    assert expected in refused(capsys, "train", run_files / "config.toml", *words)
    assert not (run_files / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "did you mean 'train'?"),
        (
            ["train"],
            "CONFIG.toml|RUN is missing: a configuration file in TOML, or a run's directory (see selecttkd",
        ),
        (["train", "nowhere.toml"], "nowhere.toml does not exist"),
        (["plot", "nowhere"], "no metrics.jsonl"),
        (["convert", "nowhere.gguf", "out"], "nowhere.gguf"),
        (["prune", "nowhere", "out", "--keep", "2"], "nowhere"),
        (["prune", "nowhere", "out"], "--keep COUNT or --layers"),
        (["export", "nowhere"], "nowhere is no directory"),
        (["compare"], "name the directories of the runs to compare"),
        (["report", "nowhere"], "nowhere is no run"),
        (["push", "nowhere", "me/small"], "nowhere is no directory"),
        (["evaluate", "nowhere"], "nowhere does not exist"),
        (["generate", "nowhere", "hello"], "nowhere"),
        (["generate", "nowhere"], "prompts"),
    ],
)
def test_mistyped_commands_are_answered(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_unknown_keys_in_the_file_are_refused_with_the_nearest_name(run_files, capsys):
    path = run_files / "config.toml"
    path.write_text(path.read_text().replace("batch_size", "batchsize"))
    assert "data.batchsize (did you mean 'batch_size'?)" in refused(capsys, "train", path)


def test_prune_and_evaluate_and_generate_from_the_command_line(run_files, capsys):
    out = run_files / "pruned"
    assert main(["prune", str(run_files / "tiny" / "teacher"), str(out), "--keep", "1"]) == 0
    assert main(["evaluate", str(run_files / "config.toml"), "--student", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "kl" in printed and "tar_greedy_top_2" in printed
    answers = run_files / "answers.jsonl"
    words = ["generate", str(out), "the cat", "a mat", "--max-new-tokens", "3", "--output", str(answers)]
    assert main(words) == 0
    written = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["prompt"][0]["content"] for row in written] == ["the cat", "a mat"]
    before = answers.read_bytes()
    assert main(words) == 0 and answers.read_bytes() == before  # all are there already
    capsys.readouterr()
    assert "made with other settings: seed (0 there, 1 here)" in refused(capsys, *words, "--seed", "1")
    (run_files / "notes.jsonl").write_text("{}\n")
    assert "notes.jsonl exists" in refused(capsys, *words[:-1], run_files / "notes.jsonl")
    assert "has 8" in refused(capsys, *words[:-2], "--mesh.tensor", "16")


def test_prune_by_cost_says_what_each_drop_costs_and_what_it_lacks(run_files, capsys):
    teacher, rows = run_files / "tiny" / "teacher", run_files / "tiny" / "rows.jsonl"
    out = run_files / "pruned"
    words = ["prune", str(teacher), str(out), "--columns", "question", "answer", "--calibration", str(rows)]
    assert main([*words, "--keep", "1", "--by", "kl", "--rows", "3", "--max-length", "48"]) == 0
    *drops, last = capsys.readouterr().out.splitlines()
    assert [line.startswith("without layer ") and "KL(full || pruned)" in line for line in drops] == [True, True]
    assert "of 3" in last and json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1
    assert "give --calibration FILE" in refused(capsys, "prune", teacher, out, "--keep", "1", "--by", "block")
    assert "between 1 and 3, got 4" in refused(capsys, *words, "--keep", "4", "--by", "kl")
    assert "between 1 and 3, got 0" in refused(capsys, *words, "--keep", "0", "--by", "influence")
    assert "name one of them" in refused(capsys, *words, "--keep", "2")
    assert "leave one out" in refused(capsys, *words, "--layers", "0", "--by", "kl")
    assert "--rows must be at least 1" in refused(capsys, *words, "--keep", "1", "--by", "kl", "--rows", "0")
    rows.write_text('{"prompt": "the cat"}\n')
    alone = ["--calibration", rows, "--keep", "1", "--by", "kl"]
    assert "no row with a response" in refused(capsys, "prune", teacher, out, *alone)


def test_prune_refuses_to_replace_its_own_source(run_files, capsys, monkeypatch):
    monkeypatch.chdir(run_files / "tiny")
    before = (run_files / "tiny" / "teacher" / "model.safetensors").read_bytes()
    assert "is the model itself" in refused(capsys, "prune", "teacher", run_files / "tiny" / "teacher", "--keep", "1")
    assert (run_files / "tiny" / "teacher" / "model.safetensors").read_bytes() == before


def test_generate_checks_where_it_will_write_first(run_files, capsys):
    teacher = run_files / "tiny" / "teacher"
    line = refused(capsys, "generate", teacher, "hi", "--output", run_files / "nowhere" / "o.jsonl")
    assert "nowhere is not a directory" in line


def test_a_directory_instead_of_a_config_is_named(run_files, capsys):
    assert "is a directory; name the file" in refused(capsys, "train", run_files)
    assert "is no run: it lacks" in refused(capsys, "evaluate", run_files)  # a project's folder, with a config.toml


def test_debug_shows_the_traceback():
    from selecttkd_jax._errors import InputError

    with pytest.raises(InputError):
        main(["--debug", "plot", "nowhere"])


@pytest.mark.parametrize("command", ["train", "generate"])
@pytest.mark.parametrize("kind", ["device", "host"])
def test_memory_that_ran_out_is_one_line_with_the_levers(command, kind, run_files, capsys, monkeypatch):
    import jax

    from selecttkd_jax import runs

    def fail(*arguments, **options):
        if kind == "host":
            raise MemoryError
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7516192768 bytes.")

    monkeypatch.setattr(runs, command, fail)
    words = {"train": [run_files / "config.toml"], "generate": [run_files / "tiny/teacher", "the cat"]}[command]
    line = refused(capsys, command, *words)
    levers = {
        "train": ["training.micro_batches", "training.head_memory_mib", "models.remat"],
        "generate": ["--slots"],
    }
    assert all(lever in line for lever in levers[command])
    assert ("7516192768 bytes" in line) == (kind == "device")


def test_a_tilde_is_the_home_directory_also_where_no_shell_expands_it(run_files, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(run_files))
    assert main(["evaluate", "~/config.toml", "--student", "~/tiny/student"]) == 0
    assert "nan" not in capsys.readouterr().out
    words = [
        "generate",
        "~/tiny/teacher",
        "--file=~/prompts.jsonl",
        "--output=~/answers.jsonl",
        "--max-new-tokens",
        "2",
    ]
    (run_files / "prompts.jsonl").write_text('{"prompt": "the cat"}\n')
    assert main(words) == 0
    assert (run_files / "answers.jsonl").is_file()
    assert main(["prune", "~/tiny/teacher", "~/pruned", "--keep", "2"]) == 0
    assert (run_files / "pruned/config.json").is_file()
