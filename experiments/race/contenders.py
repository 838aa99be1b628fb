"""Who races, at which sizes, and the command of each."""

import sys
from dataclasses import dataclass
from pathlib import Path

from contest import Contender

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shape:
    """One size of the loss race."""

    rows: int
    length: int
    student_width: int
    teacher_width: int
    vocabulary: int
    share_of_rounds: float = 1.0
    chunk_sizes: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)

    @property
    def columns(self) -> dict[str, int]:
        """In the words of the CSV."""
        return {
            "positions": self.rows * self.length,
            "student_width": self.student_width,
            "teacher_width": self.teacher_width,
            "vocabulary": self.vocabulary,
        }


# SmolLM2's head, and the widths of Qwen2.5-0.5B and -1.5B, where a round takes minutes.
SHAPES = (Shape(4, 256, 576, 576, 49_152), Shape(4, 256, 896, 1536, 151_936, share_of_rounds=0.4))
TINY_SHAPES = (Shape(2, 8, 6, 10, 64, chunk_sizes=(4, 16)),)

# By kind of mask; the others are compared with the first. A name is library_contender, and "ours" is in JAX.
LOSS_CONTENDERS = {
    "all": ("torch_eager", "torch_compile", "trl", "trl_verified", "ours", "torch_products", "jax_products"),
    "response": (
        "torch_eager",
        "torch_compile",
        "trl_verified",
        "torch_eager_rows",
        "torch_compile_rows",
        "ours",
    ),
}
BASELINES = ("torch_baseline", "trl_baseline", "jax_baseline")
STEP_CONTENDERS = {
    "torch_full": ("step_torch.py", "full"),
    "torch_rows": ("step_torch.py", "rows"),
    "torch_compile": ("step_torch.py", "compile"),
    "trl_gkd": ("step_trl.py",),
    "trl_gkd_checkpointing": ("step_trl.py", "--gradient-checkpointing"),
    "ours": ("step_jax.py", "accept_all"),
}
VERIFIERS = ("accept_all", "greedy", "spec_k")
# What a smoke test keeps of all these.
QUICK = (
    *("torch_eager", "torch_products", "torch_baseline", "torch_full"),
    *("ours", "jax_products", "jax_baseline"),
    *("accept_all", "spec_k"),
)


def loss_command(name: str, torch_python: Path, tensors: Path) -> Contender:
    """A contender of the loss race, or a baseline."""
    library, _, word = name.partition("_")
    if library == "torch":
        return Contender(name, [torch_python, HERE / "loss_torch.py", tensors, word])
    if library == "trl":
        return Contender(name, [torch_python, HERE / "loss_torch.py", tensors, name])
    return Contender(name, [Path(sys.executable), HERE / "loss_jax.py", tensors, word or "ours"])


def step_command(name: str, torch_python: Path, directory: Path) -> Contender:
    """A contender of the step race."""
    script, *words = STEP_CONTENDERS[name]
    python = Path(sys.executable) if script == "step_jax.py" else torch_python
    return Contender(name, [python, HERE / script, directory, *words])
