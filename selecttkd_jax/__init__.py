"""Selective token-weighted knowledge distillation (SelecTKD) of language models in JAX and Flax.

    from selecttkd_jax import distill, losses, selection

The three rooms are imported when they are first asked for, so that `selecttkd --help` answers without JAX.
"""

from typing import TYPE_CHECKING

__all__ = ["__version__", "distill", "losses", "selection"]


def __dir__() -> list[str]:
    return list(__all__)


if TYPE_CHECKING:
    from selecttkd_jax import distill, losses, selection

    __version__: str
else:  # a type checker that saw this would believe in every attribute

    def __getattr__(name):
        if name == "__version__":
            return _installed_version()
        if name in __all__:
            from importlib import import_module

            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _installed_version() -> str:
    """What the package's metadata say; reading them takes longer than importing this file."""
    from importlib import metadata

    try:
        return metadata.version("selecttkd-jax")
    except metadata.PackageNotFoundError:
        return "unknown: this checkout is not installed (pip install -e .)"
