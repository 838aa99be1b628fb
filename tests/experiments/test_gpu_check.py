"""The check of a GPU machine at toy sizes: every part runs, and its right answers are right."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest

pytestmark = pytest.mark.one_stack
SCRIPT = Path(gpu_check.__file__)


def test_every_part_runs_without_a_gpu(tmp_path):
    table = tmp_path / "table.csv"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--output", table], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"rates", "numerics", "head", "attention", "decode", "step"}
    assert all(row["card"] and row["commit"] and row["jax"] for row in rows)
    checked = [row for row in rows if row["allowed"]]
    assert len(checked) >= 20 and all(row["part"] == "numerics" for row in checked)
    exact = [row for row in checked if row["who"] == "float32, highest"]
    assert all(0 <= float(row["value"]) < 1e-5 for row in exact) and any(float(row["value"]) > 0 for row in exact)
    timed = [row for row in rows if row["unit"] == "ms" and row["who"] != "plan"]
    assert all(float(row["value"]) > 0 and math.isfinite(float(row["value"])) for row in timed)


def test_an_error_that_is_too_large_fails_the_check(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "head_errors", lambda dtype: {"head: loss": float("nan")})
    monkeypatch.setattr(gpu_check, "attention_errors", lambda check, dtype: {})
    monkeypatch.setattr(gpu_check, "step_error", lambda check: 0.0)
    arguments = ["gpu_check", "--tiny", "--parts", "numerics", "--output", str(tmp_path / "table.csv")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert gpu_check.main() == 1
    assert "WRONG: numerics head: loss" in capsys.readouterr().out


def test_copies_are_found_in_a_program():
    text = """
      %copy.1 = bf16[4,8,64]{2,1,0} copy(%a)
      %pad.2 = f32[16]{0} pad(%b, %c), padding=0_1
      %fusion = bf16[4,8,64]{2,1,0} fusion(%a), kind=kLoop
    """
    assert gpu_check.moved_bytes(text, least=64) == 4 * 8 * 64 * 2 + 16 * 4
    assert gpu_check.moved_bytes(text, least=65) == 4 * 8 * 64 * 2
