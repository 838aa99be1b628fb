"""What docs/security.md promises: nothing that comes with a model or data is run, and no file is unpickled."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import tiny_run

from selecttkd_jax import data, models
from selecttkd_jax._errors import InputError

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]

PACKAGE = Path(__file__).parent.parent / "selecttkd_jax"
# What runs code that is in a file or a text, and the commands of a shell.
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "torch",
    "code",
    "codeop",
    "runpy",
}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    ("os", "system"),
    ("os", "popen"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("np", "load"),
    ("numpy", "load"),
    ("jnp", "load"),
    ("subprocess", "getoutput"),
    ("subprocess", "getstatusoutput"),
}
# Processes of one run hand each other rows through pipes that nobody else has an end of.
OWN_PIPES = {PACKAGE / "data" / "_workers.py"}
FORBIDDEN_ARGUMENTS = {"trust_remote_code", "allow_pickle", "shell"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_of_the_package_can_run_what_it_reads(path):
    modules = MODULES - {"pickle"} if path in OWN_PIPES else MODULES
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not modules & {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in modules
        elif isinstance(node, ast.Call):
            called = node.func
            assert not (isinstance(called, ast.Name) and called.id in CALLS), ast.unparse(node)
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                assert (called.value.id, called.attr) not in METHODS, ast.unparse(node)
            for argument in node.keywords:
                if argument.arg in FORBIDDEN_ARGUMENTS:
                    assert isinstance(argument.value, ast.Constant) and argument.value.value is False


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return (Path.touch, (self._mark,))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A model's directory."""
    return Path(tiny_run.build(tmp_path_factory.mktemp("good")).models.teacher)


@pytest.fixture
def trapped(good, tmp_path):
    """A copy of it, and a file that is there as soon as anything of it was run."""
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model", tmp_path / "ran"


def code_that_marks(directory, mark):
    (directory / "modeling_trap.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "class Model:\n    pass\nclass Config:\n    pass\nclass Tokenizer:\n    pass\n"
    )


def change(path, **values):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin"])
def test_a_pickle_is_refused_and_not_opened(trapped, name):
    directory, mark = trapped
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(InputError, match=f"{name} is a pickle, which is never read"):
        models.from_pretrained(directory)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))  # the trap does work
    assert mark.exists()


def test_a_pickle_under_the_name_of_safetensors_is_no_safetensors(trapped):
    directory, mark = trapped
    (directory / "model.safetensors").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(InputError, match="model.safetensors"):
        models.from_pretrained(directory)
    assert not mark.exists()


def test_an_array_of_objects_is_no_data(tmp_path):
    path, mark = tmp_path / "rows.parquet", tmp_path / "ran"
    with path.open("wb") as file:
        np.save(file, np.array([Trap(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        data.read_records(path)
    assert not mark.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_refused_and_not_run(trapped, file):
    directory, mark = trapped
    code_that_marks(directory, mark)
    named = {"AutoConfig": "modeling_trap.Config", "AutoModelForCausalLM": "modeling_trap.Model"}
    if file == "tokenizer_config.json":
        named = {"AutoTokenizer": ["modeling_trap.Tokenizer", None]}
    change(directory / file, auto_map=named)
    with pytest.raises(InputError, match="auto_map"):
        data.load_tokenizer(directory)
    if file == "config.json":
        with pytest.raises(InputError, match="auto_map"):
            models.read_config(directory)
    assert not mark.exists()


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{{ self.__init__.__globals__.__builtins__['open']('MARK', 'w') }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('MARK', 'w') }}",
    "{% set _ = messages.append({'role': 'user', 'content': 'x'}) %}",
    "{% include '/etc/hostname' %}",
    "{% import 'os' as os %}{{ os.system('touch MARK') }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_cannot_leave_its_sandbox(trapped, template):
    directory, mark = trapped
    (directory / "chat_template.jinja").write_text(template.replace("MARK", str(mark)))
    record = data.Record(({"role": "user", "content": "a"},), ({"role": "assistant", "content": "b"},))
    with pytest.raises(InputError):
        tokenizer = data.load_tokenizer(directory)
        data.tokenize_records([record], tokenizer, 99, data.stop_ids(tokenizer))
    assert not mark.exists() and record.prompt == ({"role": "user", "content": "a"},)
