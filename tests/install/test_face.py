"""`import selecttkd_jax`: three rooms and a version, at no cost before they are asked for."""

import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import selecttkd_jax

CHECKOUT = Path(__file__).parents[2]


def printed(script, *options):
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, *options, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("room", ["distill", "losses", "selection"])
def test_a_room_is_an_attribute_of_the_package(room):
    script = f"import sys, selecttkd_jax as face; room = face.{room}; print(room is sys.modules[room.__name__])"
    assert printed(script) == "True"


def test_a_star_brings_the_rooms_and_the_version():
    script = "from selecttkd_jax import *; print(losses.forward_kl.__name__, distill.__name__, selection.__name__)"
    assert printed(script) == "forward_kl selecttkd_jax.distill selecttkd_jax.selection"


def test_the_package_alone_imports_neither_jax_nor_numpy():
    script = (
        "import sys; before = set(sys.modules); import selecttkd_jax; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    assert printed(script) == "selecttkd_jax"


def test_the_help_of_the_command_line_answers_without_jax():
    script = (
        "import sys; from selecttkd_jax.cli import main; code = main(['--help']); "
        "print(code, {'jax', 'numpy', 'flax', 'transformers'} & set(sys.modules))"
    )
    assert printed(script).splitlines()[-1] == "0 set()"


def test_dir_lists_the_face_and_nothing_else():
    assert dir(selecttkd_jax) == sorted(selecttkd_jax.__all__)
    assert sorted(selecttkd_jax.__all__) == ["__version__", "distill", "losses", "selection"]


def test_another_name_is_refused_as_by_any_module():
    with pytest.raises(AttributeError, match="module 'selecttkd_jax' has no attribute 'lossess'"):
        selecttkd_jax.lossess  # noqa: B018
    assert not hasattr(selecttkd_jax, "lossess")


def test_the_version_is_the_metadata_s_and_stands_once_in_pyproject():
    declared = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert selecttkd_jax.__version__ == metadata.version("selecttkd-jax") == declared


def test_a_checkout_that_is_not_installed_says_so(tmp_path):
    # A copy, because an editable install leaves its metadata in the checkout; -S leaves out site-packages.
    (tmp_path / "selecttkd_jax").mkdir()
    shutil.copy(selecttkd_jax.__file__, tmp_path / "selecttkd_jax")
    script = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import selecttkd_jax; print(selecttkd_jax.__version__)"
    assert printed(script, "-I", "-S") == "unknown: this checkout is not installed (pip install -e .)"
