"""A race's results as CSV rows: times, memory, agreement, and what is needed to place the numbers."""

import csv
import datetime
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from contest import ROOT, Result


def result_row(result: Result, **case: Any) -> dict[str, Any]:
    """One contender's row; `case` says what was raced."""
    seconds, cpu_seconds = result.column("seconds"), result.column("cpu_seconds")
    row = {**case, "contender": result.name, "rounds": len(seconds)}
    if seconds:
        row |= {"median_s": round(median(seconds), 4), "least_s": round(min(seconds), 4)}
        row |= {"cpu_s": round(median(cpu_seconds), 4), "all_s": " ".join(f"{value:.4f}" for value in seconds)}
    row["peak_mib"] = round(result.peak_mib)
    if "compiled_temp_mib" in result.facts:
        row["compiled_temp_mib"] = round(result.facts["compiled_temp_mib"], 1)
    row |= {name: result.first[name] for name in ("loss", "accepted") if name in result.first}
    row["difference"] = "" if result.difference is None else f"{result.difference:.1e}"
    return row | {"versions": result.facts.get("versions", "")}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with the union of their columns, and the place behind them."""
    facts = place()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *facts], restval="")
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)
    print(f"written to {path}", flush=True)


def place() -> dict[str, Any]:
    """Date, commit and machine."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit or "unknown",
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """The processor's name as the kernel gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
