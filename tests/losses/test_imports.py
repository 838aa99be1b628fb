"""What `import selecttkd_jax.losses` brings along: JAX, and nothing that trains, loads or plots."""

import subprocess
import sys

HEAVY = {"flax", "optax", "orbax", "grain", "transformers", "datasets", "torch", "matplotlib", "tyro", "rich"}


def test_the_core_imports_neither_models_nor_training():
    code = (
        "import sys, jax, jax.numpy; before = set(sys.modules); "
        "import selecttkd_jax.losses, selecttkd_jax.selection; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "selecttkd_jax" in run.stdout.split()
    assert not HEAVY & set(run.stdout.split())
