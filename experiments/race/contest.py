"""The race itself: contenders as long-lived processes that take turns, so that only one works at any time."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
# Largest difference to the first contender: of losses (relative), and of gradients (norm of the difference by norm).
TOLERANCE = 1e-3
BLOCK = 1 << 22


class Disagreement(Exception):
    """Two contenders that should compute the same thing do not."""


class ContenderFailed(Exception):
    """A contender's process ended before its time."""


@dataclass(frozen=True)
class Contender:
    """A name and the command that runs it; the command speaks through `channel.Channel`."""

    name: str
    command: Sequence[str | Path]


@dataclass
class Result:
    """What a contender did in a race."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)  # what it said when ready
    first: dict[str, Any] = field(default_factory=dict)  # its answer in the round that does not count
    answers: list[dict[str, Any]] = field(default_factory=list)  # its answers in those that do
    difference: float | None = None  # the largest to the first contender
    peak_mib: float = 0.0

    def column(self, name: str) -> list[float]:
        """One number of every counted round: "seconds" or "cpu_seconds"."""
        return [answer[name] for answer in self.answers]


class Child:
    """A contender's process."""

    def __init__(self, contender: Contender, scratch: Path):
        self.name = contender.name
        self.log = scratch / f"{contender.name}.log"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        # The package beside this script, whatever is installed; and the PyTorch baseline's objective.
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "experiments" / "torch_baseline")])
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [str(word) for word in contender.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )
        self.facts = self._answer()

    def run(self, *arrays: Path) -> dict[str, Any]:
        """Gives it a turn and waits for the end of it; the arrays named like these files, if it has them, go there."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{' '.join(['run', *map(str, arrays)])}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> float:
        """Ends it and returns its largest resident set in MiB, the kernel's own figure."""
        if self._process.returncode is None:
            assert self._process.stdin is not None and self._process.stdout is not None
            peak_mib = self._peak_so_far()
            self._process.stdin.close()
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._process.stdout.close()
            self._peak_mib = peak_mib or usage.ru_maxrss / 1024
        return self._peak_mib

    def _peak_so_far(self) -> float:
        # Not `ru_maxrss`, where there is a choice: a process inherits that of the one that started it.
        status = Path(f"/proc/{self._process.pid}/status")
        lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
        return next((float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            last_words = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            code = self._process.returncode
            raise ContenderFailed(f"{self.name} ended with exit code {code}; its last words:\n{last_words}")
        return json.loads(line)


def race(contenders: Sequence[Contender], rounds: int, scratch: Path, arrays: Sequence[str] = ()) -> dict[str, Result]:
    """Lets the contenders take turns for `rounds` rounds, after one that does not count.

    Losses and acceptances are compared with the first contender's after every round, the named arrays after the
    uncounted one, before anything is timed.

    Raises:
      Disagreement: Some contender does not compute what the first one does.
      ContenderFailed: A process ended early.
    """
    results = {contender.name: Result(contender.name) for contender in contenders}
    children: dict[str, Child] = {}
    try:
        for contender in contenders:
            children[contender.name] = Child(contender, scratch)
            results[contender.name].facts = children[contender.name].facts
        names = list(children)
        for number in range(rounds + 1):
            # Everyone comes first, and after everyone, equally often.
            shift = number % len(names)
            if number == 0:
                answers = _first_round(children, results, scratch, arrays)
            else:
                answers = {name: children[name].run() for name in names[shift:] + names[:shift]}
                for name, answer in answers.items():
                    results[name].answers.append(answer)
            _compare_numbers(answers, results)
            times = "  ".join(f"{name} {answers[name]['seconds']:.2f}" for name in names)
            print(f"  {'warm-up' if number == 0 else f'round {number}'}: {times}", flush=True)
    finally:
        for name, child in children.items():
            results[name].peak_mib = child.close()
    return results


def measure_peak(contender: Contender, scratch: Path, turns: int = 0) -> Result:
    """A contender alone: its largest resident set after loading and `turns` turns."""
    child = Child(contender, scratch)
    try:
        for _ in range(turns):
            child.run()
    finally:
        peak = child.close()
    print(f"  {contender.name}: peak {peak:,.0f} MiB", flush=True)
    return Result(contender.name, facts=child.facts, peak_mib=peak)


def _first_round(
    children: dict[str, Child], results: dict[str, Result], scratch: Path, arrays: Sequence[str]
) -> dict[str, dict[str, Any]]:
    answers, first = {}, next(iter(children))
    for name, child in children.items():
        (scratch / name).mkdir()
        answers[name] = results[name].first = child.run(*(scratch / name / array for array in arrays))
        for array in arrays:
            if name != first and (scratch / name / array).exists():
                difference = relative_difference(scratch / name / array, scratch / first / array)
                _record(results[name], array, difference)
                (scratch / name / array).unlink()
    for array in arrays:
        (scratch / first / array).unlink()
    return answers


def _compare_numbers(answers: dict[str, dict[str, Any]], results: dict[str, Result]) -> None:
    expected = answers[next(iter(results))]
    for name, answer in answers.items():
        if answer is not expected and "loss" in answer and "loss" in expected:
            _record(results[name], "loss", abs(answer["loss"] - expected["loss"]) / abs(expected["loss"]))
        if answer.get("accepted", expected.get("accepted")) != expected.get("accepted"):
            raise Disagreement(f"{name} accepts {answer['accepted']} positions, expected {expected['accepted']}")


def _record(result: Result, what: str, difference: float) -> None:
    # Written so that NaN is a disagreement, too.
    if not difference <= TOLERANCE:
        raise Disagreement(f"{result.name} differs from the first contender in its {what} by {difference:.1e}")
    result.difference = max(result.difference or 0.0, difference)


def relative_difference(path: Path, reference: Path) -> float:
    """|a - b| / |b| of two files of float32, block by block: they may be large."""
    if path.stat().st_size != reference.stat().st_size:
        return float("inf")
    square_difference = square = 0.0
    with path.open("rb") as file, reference.open("rb") as expected_file:
        while len(block := np.fromfile(file, np.float32, BLOCK)):
            expected = np.fromfile(expected_file, np.float32, BLOCK)
            square += float(np.square(expected, dtype=np.float64).sum())
            square_difference += float(np.square(block - expected, dtype=np.float64).sum())
    return (square_difference / square) ** 0.5 if square else float(square_difference > 0)
