"""`pip install .` without extras, in an environment of its own: the functions work, nothing else came.

Needs pip's package index (or its cache) for JAX and NumPy; without either, `-m "not install"` leaves this file out.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest

from selecttkd_jax._extras import EXTRAS

pytestmark = [pytest.mark.install, pytest.mark.one_stack]

CHECKOUT = Path(__file__).parents[2]
BROUGHT_BY_EXTRAS = sorted(module for modules in EXTRAS.values() for module in modules)


@pytest.fixture(scope="module")
def core():
    """The environment: its folder of programs."""
    with tempfile.TemporaryDirectory() as folder:
        # A copy, because setuptools builds in the source tree, where an old build/ would end in the wheel.
        source, environment = Path(folder, "source"), Path(folder, "environment")
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(CHECKOUT / name, source)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / "selecttkd_jax", source / "selecttkd_jax", ignore=ignored)
        venv.create(environment, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(environment), "--disable-pip-version-check"]
        done = run([*pip, "install", "--quiet", "--no-compile", str(source)])
        assert done.returncode == 0, f"pip cannot install the package:\n{done.stderr}"
        yield environment / "bin"


def run(words):
    """Runs a program, of whose surroundings nothing leads back to this checkout or this environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") and name != "XLA_FLAGS"}
    return subprocess.run(words, capture_output=True, text=True, env=kept, cwd=tempfile.gettempdir(), check=False)


def printed(core, script):
    done = run([str(core / "python"), "-c", script])
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_nothing_of_the_extras_is_there(core):
    script = (
        "import importlib.util; "
        f"print(*[name for name in {BROUGHT_BY_EXTRAS} if importlib.util.find_spec(name) is not None])"
    )
    assert printed(core, script) == []


def test_the_installed_package_is_typed_and_knows_its_version(core):
    script = (
        "import selecttkd_jax; from importlib import metadata, resources; "
        "assert resources.files('selecttkd_jax').joinpath('py.typed').is_file(); "
        "print(selecttkd_jax.__version__ == metadata.version('selecttkd-jax'), selecttkd_jax.__file__)"
    )
    same, file = printed(core, script)
    assert same == "True" and Path(file).is_relative_to(core.parent)


def test_losses_and_selection_count(core):
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL(p || q) = log 2 - H(p) = 0.130812 nats.
    script = """
import jax.numpy as jnp
import selecttkd_jax

teacher, student = jnp.log(jnp.array([0.75, 0.25])), jnp.zeros(2)
print(f"{selecttkd_jax.losses.forward_kl(student, teacher):.6f}")
print(f"{selecttkd_jax.selection.greedy_top_k(student, teacher, k=1):.0f}")
"""
    assert printed(core, script) == ["0.130812", "1"]


def test_an_objective_has_its_gradient(core):
    # One token counts, and it is accepted: the gradient is the softmax's difference, q - p, and nothing elsewhere.
    script = """
from functools import partial

import jax
import jax.numpy as jnp

from selecttkd_jax import distill, losses, selection

objective = distill.Objective(
    divergence=losses.forward_kl, verifier=partial(selection.greedy_top_k, k=1), floor=0.0, normalizer="token"
)
teacher = jnp.log(jnp.array([[[0.75, 0.25], [0.25, 0.75]]]))
mask = jnp.array([[True, False]])
loss = jax.jit(lambda student: objective(student, teacher, mask, None).mean)
print(*[f"{each:.4f}" for each in jax.grad(loss)(jnp.zeros((1, 2, 2))).ravel()])
"""
    assert [float(each) for each in printed(core, script)] == [-0.25, 0.25, 0.0, 0.0]


def test_a_command_that_needs_more_says_what_to_install(core, tmp_path):
    config = tmp_path / "x.toml"
    config.write_text("")
    done = run([str(core / "selecttkd"), "train", str(config)])
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    start, end = "selecttkd: error: this command needs ", "; in a clone of selecttkd_jax: pip install '.[train]'"
    assert lines[0].startswith(start) and lines[0].endswith(end), lines[0]
    assert lines[0].removeprefix(start).removesuffix(end) in EXTRAS["train"]


@pytest.mark.parametrize("words, expected", [("--help", "usage: selecttkd"), ("--version", "selecttkd_jax ")])
def test_what_needs_nothing_answers(core, words, expected):
    done = run([str(core / "selecttkd"), words])
    assert done.returncode == 0 and done.stdout.startswith(expected) and not done.stderr
