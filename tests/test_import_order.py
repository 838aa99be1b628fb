"""The layout is the architecture: a file imports only from rooms above its own, and the pure rooms import only JAX."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "selecttkd_jax"
ROOMS = [
    *("array_types", "checks", "compilation", "mesh_axes", "losses", "selection", "distill", "sharding", "models"),
    *("data", "generation", "metrics", "evaluation", "training", "pipelines", "plotting", "config", "progress"),
    *("runner", "planning", "cli"),
]


def imported_modules(path: Path) -> set[str]:
    """Dotted names that a file imports from the package, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "selecttkd_jax":
            found |= {f"selecttkd_jax.{name.name}" for name in node.names if name.name != "__version__"}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return {name for name in found if name.startswith("selecttkd_jax.")}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in ROOMS, f"{room} has no place in the order of rooms"
    for module in imported_modules(path):
        other = module.split(".")[1]
        assert ROOMS.index(other) <= ROOMS.index(room), f"{path.name} imports {module} from a room below"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_one_topic(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_pure_rooms_pull_in_nothing_heavy():
    script = (
        "import sys; from selecttkd_jax import distill, losses, selection, sharding; "
        "heavy = ('flax', 'orbax', 'transformers', 'datasets', 'optax', 'grain'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
