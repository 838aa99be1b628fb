"""Every test sees eight CPU devices, strict dtype promotion and no silent rank promotion."""

import gc
import os
import pathlib
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# LLVM's optimiser takes most of a small program's compile time and changes no result that a test looks at.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
# No test may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# What one test has compiled, the next one takes from disk; each process has a folder of its own, since JAX writes there
# without a lock.
_compiled = tempfile.TemporaryDirectory(prefix="selecttkd_tests_")
# Nor may one leave anything in the user's cache, or find it there.
os.environ["XDG_CACHE_HOME"] = _compiled.name
jax.config.update("jax_compilation_cache_dir", _compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

import pytest  # noqa: E402

# A system gives a process so many mappings of memory (65,530 on Linux), and a compiled program takes several: past them
# XLA crashes.
_MOST_MAPPINGS = 30_000


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drops what was compiled once there is too much of it."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > _MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def lenient_promotion():
    """For tests that run optax's Adam, which raises a float to an integer count."""
    with jax.numpy_dtype_promotion("standard"):
        yield
