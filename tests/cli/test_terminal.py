"""Mistakes on a terminal, which is no pipe: one plain line, whatever tyro would draw."""

import os
import pty
import re
import subprocess
import sys

import pytest

from selecttkd_jax.cli import _parsing

pytestmark = pytest.mark.one_stack

# Each mistake with our own sentence, and with what is made of tyro's box where we have none.
MISTAKES = """
import sys
from selecttkd_jax.cli import _parsing, main

own = _parsing._sentence
for sentence in (own, lambda *about: None):
    _parsing._sentence = sentence
    for words in (
        ["train"],
        ["train", "a.toml", "b.toml"],
        ["train", "a.toml", "--trainin.steps", "3"],
        ["generate", "model", "hello", "--dtype", "int4"],
        ["generate", "model", "hello", "--template-kwargs", "foo"],
    ):
        assert main(words) == 2, words
"""


def test_mistakes_are_plain_lines_on_a_terminal():
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-c", MISTAKES], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    assert process.wait() == 0, said.decode()
    lines = said.decode().splitlines()
    assert len(lines) == 10 and all(line.startswith("selecttkd: error: ") for line in lines), lines
    assert all(line.isprintable() and not re.search("[╭╮╰╯│─]", line) for line in lines)
    assert "did you mean '--training.steps'" in lines[2] and "Unrecognized options: --trainin.steps" in lines[7]


def test_a_box_without_a_rule_is_read_to_its_end():
    box = "╭─ Error ─╮\n│ \x1b[31mone\x1b[0m   │\n│ two │\n╰─────────╯\n"
    assert _parsing._unboxed(box) == "one two"
