"""What the package imports is what pyproject.toml declares: the core a little, the extras the rest."""

import ast
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from selecttkd_jax._extras import EXTRAS, what_to_install

CHECKOUT = Path(__file__).parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
PACKAGE = CHECKOUT / "selecttkd_jax"
CORE_ROOMS = ("compilation.py", "distill", "losses", "selection", "sharding")
CORE = {"jax", "jaxtyping", "numpy"}
# Where one is missing, the code that imports it says what it is for.
OPTIONAL = {"kubernetes", "libtpu"}


def third_party_imports(path):
    """Top-level names of what a file imports, wherever in it, besides the package and Python."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"selecttkd_jax"}


def belongs_to_the_core(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first in CORE_ROOMS or (first.startswith("_") and path.parent == PACKAGE)


def distributions(requirements):
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_is_declared(path):
    allowed = CORE if belongs_to_the_core(path) else CORE.union(*EXTRAS.values(), OPTIONAL)
    assert third_party_imports(path) <= allowed


def test_the_core_is_declared_and_nothing_besides():
    assert distributions(PROJECT["dependencies"]) == CORE
    assert set().union(*map(third_party_imports, filter(belongs_to_the_core, PACKAGE.rglob("*.py")))) == CORE


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_declares_the_modules_that_it_is_named_for(extra):
    installed = metadata.packages_distributions()
    expected = {canonicalize_name(installed.get(module, [module])[0]) for module in EXTRAS[extra]}
    assert distributions(PROJECT["optional-dependencies"][extra]) - {"selecttkd-jax"} == expected


@pytest.mark.parametrize("extra", ["gguf", "plots", "tensorboard", "wandb", "tpu-plan", "gpu-plan", "test"])
def test_an_extra_that_serves_a_command_brings_what_commands_need(extra):
    own = [Requirement(each) for each in PROJECT["optional-dependencies"][extra] if each.startswith("selecttkd-jax[")]
    assert any("train" in requirement.extras for requirement in own)


def test_no_bound_is_a_cap():
    pinned = ("parity", "serve-test", "docs", "lint")  # what tests compare with, and what formats code and pages
    extras = {name: each for name, each in PROJECT["optional-dependencies"].items() if name not in pinned}
    for requirement in [*PROJECT["dependencies"], *sum(extras.values(), [])]:
        assert {specifier.operator for specifier in Requirement(requirement).specifier} <= {">="}, requirement


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    where = "in a clone of selecttkd_jax: pip install"
    missing = ModuleNotFoundError("No module named 'optax'", name="optax")
    assert what_to_install(missing) == f"this command needs optax; {where} '.[train]'"
    missing = ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib.figure")
    assert what_to_install(missing) == f"this command needs matplotlib; {where} '.[plots]'"


@pytest.mark.parametrize("name", ["torch", "selecttkd_jax.loses", None])
def test_what_no_extra_brings_is_left_to_the_traceback(name):
    assert what_to_install(ModuleNotFoundError("No module named 'it'", name=name)) is None
