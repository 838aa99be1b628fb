"""Breaks the core in small ways and shows that the tests notice: `python -m tests.mutation [--own-room] [PATTERN ...]`.

Every mutant is one changed line in a copy of the package; the copy's tests run against it in a process of their own,
those of the mutant's room first, until one fails. A mutant that survives is a line whose meaning no test holds. Each
PATTERN picks mutants by path or meaning; with `--own-room` the tests of other rooms are left out.

About an hour on two CPU cores for all of them; exit code 1 if one survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutation.mutant import Mutant
from tests.mutation.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
# The files of a room that are run before its others: they are quick, and hold most.
QUICK = {
    "losses": ("small_differences", "gradient_formulas", "bad_input"),
    "selection": ("verifiers", "ranking", "budget", "rates"),
    "distill": (
        "vocabulary",
        "two_stream",
        "objective_identity",
        "schedules",
        "shadows",
        "rejected",
        "objective",
        "fused_head",
        "fused_head_mesh",
    ),
}


def main(*arguments: str) -> int:
    own_room = "--own-room" in arguments
    patterns = [argument for argument in arguments if argument != "--own-room"] or [""]
    chosen = [m for m in MUTANTS if any(pattern in m.path or pattern in m.meaning for pattern in patterns)]
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "selecttkd_jax", copy / "selecttkd_jax", ignore=ignored)
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for mutant in chosen:
            check_applies(mutant, copy)
        if not all(passes(copy, run) for run in {run: None for mutant in chosen for run in runs_of(mutant, own_room)}):
            print("the tests fail without any mutant: nothing to learn")
            return 1
        survivors = [mutant for mutant in chosen if survives(mutant, copy, runs_of(mutant, own_room))]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught")
    for mutant in survivors:
        print(f"SURVIVED {mutant.path}: {mutant.meaning}")
    return int(bool(survivors))


def check_applies(mutant: Mutant, copy: Path) -> None:
    count = (copy / "selecttkd_jax" / mutant.path).read_text().count(mutant.old)
    if count != 1:
        raise SystemExit(f"mutant '{mutant.meaning}': expected its text once in {mutant.path}, found it {count} times")


def runs_of(mutant: Mutant, own_room: bool) -> list[tuple[str, ...]]:
    """The arguments of each run of pytest against a mutant, its own room first; what all rooms share has none."""
    own = mutant.path.split("/")[0]
    runs = []
    for room in sorted(QUICK, key=lambda room: room != own):
        if room == own or own not in QUICK or not own_room:
            quick = tuple(f"tests/{room}/test_{name}.py" for name in QUICK[room])
            runs += [quick, (f"tests/{room}", *(f"--ignore={file}" for file in quick))]
    return runs


def survives(mutant: Mutant, copy: Path, runs: list[tuple[str, ...]]) -> bool:
    path = copy / "selecttkd_jax" / mutant.path
    original = path.read_text()
    start = time.perf_counter()
    path.write_text(original.replace(mutant.old, mutant.new))
    try:
        alive = all(passes(copy, run) for run in runs)
    finally:
        path.write_text(original)
    verdict = "SURVIVED" if alive else "caught"
    print(f"{verdict:8s} {time.perf_counter() - start:5.0f} s  {mutant.path}: {mutant.meaning}", flush=True)
    return alive


def passes(copy: Path, run: tuple[str, ...]) -> bool:
    """Whether a run of pytest with these arguments passes in the copy, whose package comes first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations=0", *run]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode == 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
