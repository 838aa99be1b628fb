"""The layout is the architecture: rooms import from rooms above, files in no circle, the core only JAX and NumPy."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "selecttkd_jax"
ROOMS = [
    *("_errors", "_signals", "_outside_files", "_new_files", "_extras", "_provenance"),
    *("_checks", "_array_types", "_mesh_axes", "_packed_rows", "compilation"),
    *("losses", "selection", "distill"),
    *(
        "sharding",
        "models",
        "data",
        "generation",
        "metrics",
        "plotting",
        "progress",
        "reporting",
        "training",
        "sources",
        "methods",
    ),
    *("evaluation", "runs", "planning", "cli", "__main__"),
]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    """The file's dotted name below the package; a room's own name for its `__init__.py`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path): path for path in FILES}


def imported_names(path: Path) -> set[str]:
    """Dotted names below the package of the files that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from room import file` imports the file, `from room import name` the room.
            parts = {f"{node.module}.{name.name}" for name in node.names}
            found |= {part if part.removeprefix("selecttkd_jax.") in NAMES else str(node.module) for part in parts}
    return {name.removeprefix("selecttkd_jax.") for name in found if name.startswith("selecttkd_jax.")}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_rooms_import_from_rooms_above_them(path):
    room = name_of(path).split(".")[0]
    assert room in ROOMS, f"{room} has no place in the order of rooms"
    for name in imported_names(path):
        other = name.split(".")[0]
        assert ROOMS.index(other) <= ROOMS.index(room), f"{name_of(path)} imports {name}, which is below"
        assert not (other == room and path.stem != "__init__" and name == room), f"{path.name} imports its own room"


def test_files_import_each_other_in_no_circle():
    graph = {name: imported_names(path) - {name} for name, path in NAMES.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(NAMES) <= set(order)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != PACKAGE], ids=name_of)
def test_files_of_a_room_are_private_and_the_room_says_what_is_not(path):
    assert path.stem.startswith("_"), "a room's __init__ re-exports what is public"


@pytest.mark.parametrize("path", FILES, ids=name_of)
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


def test_models_know_neither_losses_nor_data():
    for name, path in NAMES.items():
        if name.split(".")[0] == "models":
            rooms = {other.split(".")[0] for other in imported_names(path)}
            assert not rooms & {"losses", "selection", "distill", "data"}, name


def test_models_and_data_are_imported_quickly():
    script = (
        "import sys; from selecttkd_jax import data, generation, models, sharding; "
        "slow = ('transformers', 'tokenizers', 'huggingface_hub', 'datasets', 'grain', 'gguf', 'orbax', 'jinja2'); "
        "print([name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
