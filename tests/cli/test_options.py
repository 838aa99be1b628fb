"""What the command line supplies, and what comes before the command."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from selecttkd_jax import runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.cli import COMMANDS, main
from selecttkd_jax.cli._parsing import parse
from selecttkd_jax.cli._train import Train

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]


def run_python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


WITHOUT_JAX = [name for name in COMMANDS if name not in ("train", "plan", "evaluate")]


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in WITHOUT_JAX)])
def test_help_needs_no_jax(words):
    script = (
        "import sys; from selecttkd_jax.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'jax', 'numpy', 'flax', 'transformers', 'orbax', 'datasets'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = run_python("-c", script, *words)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_the_package_is_the_command():
    done = run_python("-m", "selecttkd_jax", "--version")
    assert done.returncode == 0 and done.stdout.startswith("selecttkd_jax ")


def errors(capsys, *words):
    """The exit code of a command that is refused, and what it says."""
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    (line,) = (line for line in err.splitlines() if line.startswith("selecttkd: error: "))
    return line


@pytest.mark.parametrize("option", ["--debug", "--quiet", "--verbose"])
def test_global_options_stand_before_the_command(option, capsys):
    assert f"{option} goes before the command" in errors(capsys, "plot", "nowhere", option)


def test_quiet_and_verbose_contradict_each_other(capsys):
    assert "contradict" in errors(capsys, "--quiet", "--verbose", "plot", "nowhere")


@pytest.fixture
def bare(config, tmp_path):
    """A configuration file that says nothing but a learning rate, and the options that it lacks."""
    (tmp_path / "bare.toml").write_text("[optimizer]\nlearning_rate = 0.005\n")
    lacking = ["--models.teacher", config.models.teacher, "--models.student", config.models.student]
    lacking += ["--data.train", config.data.train, "--data.columns", "question", "answer", "--data.max-length", "48"]
    lacking += ["--data.batch-size", "4", "--data.held-out-rows", "5", "--output", str(tmp_path / "run")]
    return tmp_path / "bare.toml", [*lacking, "--training.steps", "2"]


def saved(directory):
    return tomllib.loads((Path(directory) / "config.toml").read_text())


def test_options_of_the_template_are_words(bare, capsys):
    path, lacking = bare
    assert "data.date must be a date" in errors(capsys, "train", str(path), *lacking, "--data.date", "today")
    words = ["--data.template-kwargs", "enable_thinking=false", "effort=high"]
    assert "template_kwargs has enable_thinking, which the chat template does not read" in errors(
        capsys, "train", str(path), *lacking, *words
    )
    assert "must be words NAME=VALUE, got 'high'" in errors(
        capsys, "train", str(path), *lacking, "--data.template-kwargs", "high"
    )


def test_options_supply_what_the_file_lacks(bare, tmp_path, capsys):
    path, lacking = bare
    assert main(["train", str(path), *lacking, "--lora.rank", "2"]) == 0
    there = saved(tmp_path / "run")
    assert there["optimizer"]["learning_rate"] == 0.005 and there["lora"]["rank"] == 2
    assert there["method"]["name"] == "kd" and there["objective"]["divergence"] == "forward_kl"
    assert "held-out KL" in capsys.readouterr().out


def test_the_method_is_picked_by_its_name(bare, tmp_path, capsys):
    path, lacking = bare
    lacking = lacking[2:]  # no teacher
    assert main(["train", str(path), *lacking, "--method.name", "sft"]) == 0
    assert saved(tmp_path / "run")["method"] == {"name": "sft"}
    assert "held-out cross-entropy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--method.label-share", "0.5", "--method.name", "sft"], "method.label_share is an option of kd, not of sft"),
        (["--method.name", "kdd"], "got 'kdd' (did you mean 'kd'?)"),
        (["--method.label-share", "1.5"], "method.label_share must be in [0, 1], got 1.5"),
        (
            ["--method.name", "sft", "--objective.k", "3"],
            "method sft learns from the text alone and has no use for objective.k",
        ),
    ],
)
def test_what_does_not_go_with_a_method_is_refused(words, expected, bare, capsys):
    path, lacking = bare
    assert expected.lower() in errors(capsys, "train", path, *lacking, *words).lower()


def test_all_that_is_missing_is_said_at_once(bare, capsys):
    line = errors(capsys, "train", bare[0])
    assert all(name in line for name in ("models", "data", "output", "are missing"))


def test_an_override_may_mend_what_the_file_contradicts(bare, tmp_path):
    path, _ = bare
    path.write_text(
        'output = "x"\n[models]\nteacher = "t"\nstudent = "s"\n[data]\ntrain = "d"\nbatch_size = 3\n'
        "[training]\nmicro_batches = 2\n"
    )
    with pytest.raises(InputError, match="micro_batches must divide"):
        runs.load_config(path)
    assert runs.load_config(path, {"data": {"batch_size": 4}}).data.batch_size == 4


def test_a_run_that_made_the_student_worse_says_so_in_its_last_line(bare, capsys):
    path, lacking = bare
    wild = ["--optimizer.learning-rate", "1.0", "--optimizer.warmup-fraction", "0", "--optimizer.clip-norm", "0"]
    assert main(["train", str(path), *lacking, *wild]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("held-out KL ended above its start (") and "learning_rate (it was 1.0)" in last


def test_a_run_that_made_it_better_does_not(bare, capsys):
    path, lacking = bare
    assert main(["train", str(path), *lacking]) == 0
    assert "above its start" not in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_completion_script_knows_commands_and_options(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*COMMANDS, "--keep", "--max-new-tokens"))
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        checked = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_transformers_does_not_begin_every_command_with_the_lack_of_pytorch():
    script = (
        "import sys; from selecttkd_jax.cli import main; assert main(['nothing']) == 2; "
        "sys.modules['torch'] = None; import transformers"
    )
    done = run_python("-c", script)
    assert done.returncode == 0 and "PyTorch" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.skip-bad-rows"], True),
        (["--data.skip-bad-rows", "true"], True),
        (["--data.skip-bad-rows=True"], True),
        (["--data.no-skip-bad-rows"], False),
        (["--data.skip-bad-rows", "false"], False),
        (["--data.skip-bad-rows=false"], False),
    ],
)
def test_a_yes_or_no_is_a_flag_or_a_word(words, expected):
    asked = parse(Train, [*words, "c.toml"], "train")
    assert (
        asked is not None and asked.overrides["data"] == {"skip_bad_rows": expected} and str(asked.config) == "c.toml"
    )


def test_what_is_neither_yes_nor_no_is_said(bare, capsys):
    assert "--data.skip-bad-rows must be true or false, got 'maybe'" in errors(
        capsys, "train", bare[0], "--data.skip-bad-rows=maybe"
    )


def test_several_sources_stand_in_the_file(bare, capsys):
    assert "as [[data.sources]], not on the command line" in errors(capsys, "train", bare[0], "--data.sources", "x")
