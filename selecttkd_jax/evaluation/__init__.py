"""How far a student is from its teacher on rows neither was trained on."""

from selecttkd_jax.evaluation.held_out import HeldOut, held_out_verifiers

__all__ = ["HeldOut", "held_out_verifiers"]
