"""What every contender of the loss race computes with: hidden states, heads and a mask, written once as .npy files.

    python tensors.py DIRECTORY --sizes ROWS LENGTH STUDENT_WIDTH TEACHER_WIDTH VOCABULARY [--mask MASK.npy]

The student's logits are the teacher's with an error, so about half of its proposals are among the teacher's five best.
"""

import argparse
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

ALIGNMENT = 64  # bytes; at such an address JAX takes NumPy's memory over, and a copy would count as its own peak
NAMES = ("teacher_head", "student_head", "teacher_hidden", "student_hidden", "mask")
LOGIT_SPREAD = 3.0  # standard deviation of the teacher's logits
STUDENT_ERROR = 0.5  # of the student's hidden states, beside the teacher's own in unit size
UNSEEN_BY_STUDENT = 0.3  # size of the teacher's hidden states in the dimensions that the student lacks


def write(
    directory: Path,
    rows: int,
    length: int,
    student_width: int,
    teacher_width: int,
    vocabulary: int,
    mask: np.ndarray | None = None,
) -> None:
    """Writes float32 hidden states [B, T, D], heads [V, D] as Hugging Face stores them, and a mask [B, T]."""
    generator = np.random.default_rng(0)
    teacher_head = generator.standard_normal((vocabulary, teacher_width), np.float32)
    teacher_head *= LOGIT_SPREAD / np.sqrt(student_width)
    teacher_hidden = generator.standard_normal((rows, length, teacher_width), np.float32)
    teacher_hidden[..., student_width:] *= UNSEEN_BY_STUDENT
    error = generator.standard_normal((rows, length, student_width), np.float32)
    arrays = {
        "teacher_head": teacher_head,
        "student_head": np.ascontiguousarray(teacher_head[:, :student_width]),
        "teacher_hidden": teacher_hidden,
        "student_hidden": teacher_hidden[..., :student_width] + STUDENT_ERROR * error,
        "mask": np.ones((rows, length), bool) if mask is None else mask,
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        np.save(directory / f"{name}.npy", arrays[name])


def load(directory: Path, convert: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """Every array by its name, as `convert` makes it from NumPy's."""
    return {name: convert(read_aligned(directory / f"{name}.npy")) for name in NAMES}


def read_aligned(path: Path) -> np.ndarray:
    """The array in a .npy file, at an address that is a multiple of `ALIGNMENT`."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        size = prod(shape) * dtype.itemsize
        memory = np.empty(size + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        aligned = memory[start : start + size]
        file.readinto(aligned)
    return aligned.view(dtype).reshape(shape)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sizes", type=int, nargs=5, required=True)
    parser.add_argument("--mask", type=Path)
    options = parser.parse_args()
    write(options.directory, *options.sizes, mask=None if options.mask is None else np.load(options.mask))
