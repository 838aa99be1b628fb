"""Selective token-weighted knowledge distillation (SelecTKD) of language models in JAX and Flax."""

__version__ = "0.1.0"
