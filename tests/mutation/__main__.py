"""Breaks the core in small ways and shows that the tests notice: `python -m tests.mutation [PATTERN]`.

Every mutant is one changed line in a copy of the package; the copy's tests run against it in a process of their own.
A mutant that survives is a line whose meaning no test holds. PATTERN picks mutants by path or meaning.

About 20 minutes on two CPU cores for all of them; exit code 1 if one survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
ORDER = ["tests/losses", "tests/selection", "tests/distill"]


def main(pattern: str = "") -> int:
    chosen = [m for m in MUTANTS if pattern in m.path or pattern in m.meaning]
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "selecttkd_jax", copy / "selecttkd_jax", ignore=ignored)
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for mutant in chosen:
            check_applies(mutant, copy)
        if not passes(copy, ORDER):
            print("the tests fail without any mutant: nothing to learn")
            return 1
        survivors = [mutant for mutant in chosen if survives(mutant, copy)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught")
    for mutant in survivors:
        print(f"SURVIVED {mutant.path}: {mutant.meaning}")
    return int(bool(survivors))


def check_applies(mutant: Mutant, copy: Path) -> None:
    count = (copy / "selecttkd_jax" / mutant.path).read_text().count(mutant.old)
    if count != 1:
        raise SystemExit(f"mutant '{mutant.meaning}': expected its text once in {mutant.path}, found it {count} times")


def survives(mutant: Mutant, copy: Path) -> bool:
    path = copy / "selecttkd_jax" / mutant.path
    original = path.read_text()
    start = time.perf_counter()
    path.write_text(original.replace(mutant.old, mutant.new))
    try:
        room = f"tests/{mutant.path.split('/')[0]}"
        alive = passes(copy, [room, *(other for other in ORDER if other != room)])
    finally:
        path.write_text(original)
    verdict = "SURVIVED" if alive else "caught"
    print(f"{verdict:8s} {time.perf_counter() - start:5.0f} s  {mutant.path}: {mutant.meaning}", flush=True)
    return alive


def passes(copy: Path, rooms: list[str]) -> bool:
    """Whether the tests of the rooms pass in the copy, whose package comes first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations=0", *rooms]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode == 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
