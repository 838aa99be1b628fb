"""Files and directories that are there whole or not at all."""

import os
import signal
import subprocess
import sys

import pytest

from selecttkd_jax import _new_files
from selecttkd_jax._new_files import new_directory, sweep, write_file

pytestmark = pytest.mark.one_stack

# Dies in the midst of replacing a directory that is there.
KILLED = """
import os, signal, sys
from pathlib import Path
from selecttkd_jax import _new_files

die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
target, place = Path(sys.argv[1]), sys.argv[2]
if place != "exchange":
    _new_files._change_places = lambda one, other: False
if place == "between":
    rename, renamed = os.rename, []
    os.rename = lambda *names: die() if renamed else renamed.append(rename(*names))
if place in ("exchange", "removing"):
    _new_files.shutil.rmtree = die
with _new_files.new_directory(target) as new:
    (new / "weights").write_text("new")
    if place == "writing":
        die()
"""


def test_a_file_is_replaced_whole_with_the_rights_of_any_other(tmp_path):
    for text in ("one", "two"):
        write_file(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == text
    (tmp_path / "other").write_text("")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode
    with pytest.raises(OSError, match="nowhere/file"):
        write_file(tmp_path / "nowhere" / "file", "three")
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


@pytest.mark.parametrize("place", ["writing", "between", "removing", "exchange"])
def test_a_kill_leaves_the_old_directory_or_the_new_one_and_the_next_start_no_litter(tmp_path, place):
    target = tmp_path / "student"
    target.mkdir()
    (target / "weights").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), place])
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == (1 if place == "between" else 2) + (place == "between")
    sweep(target)
    assert (target / "weights").read_text() == ("old" if place in ("writing", "between") else "new")
    assert os.listdir(tmp_path) == ["student"]


def test_what_another_process_writes_is_left_alone(tmp_path):
    with new_directory(tmp_path / "model") as unfinished:
        sweep(tmp_path / "model")
        assert unfinished.is_dir()
        (tmp_path / ".model.left.unfinished").mkdir()
        sweep(tmp_path / "model")
        assert [name for name in os.listdir(tmp_path) if name != unfinished.name] == []
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("atomic", [True, False])
def test_a_failure_leaves_what_was_there(tmp_path, atomic, monkeypatch):
    if not atomic:
        monkeypatch.setattr(_new_files, "_change_places", lambda one, other: False)
    for text in ("one", "two"):
        with new_directory(tmp_path / "model") as new:
            (new / "weights").write_text(text)
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "model"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["model"] and (tmp_path / "model" / "weights").read_text() == "two"
