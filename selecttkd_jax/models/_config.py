"""What a decoder is: sizes, options and rotary embedding, checked at construction."""

import math
from dataclasses import dataclass, field

from selecttkd_jax._errors import InputError, check_at_least, check_one_of

ROTARY_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RotaryConfig:
    """Frequencies of the rotary position embedding.

    Attributes:
        theta: Base wavelength.
        kind: `default`, `linear`, `llama3` or `yarn`.
        factor: By how much the context was stretched (all kinds but `default`).
        original_max_positions: Context length before stretching, in tokens (`llama3`, `yarn`).
        low_freq_factor: `llama3`; wavelengths above `original_max_positions / low_freq_factor` are stretched fully.
        high_freq_factor: `llama3`; wavelengths below `original_max_positions / high_freq_factor` are kept.
        beta_fast: `yarn`; dimensions turning more often than this within the original context are kept.
        beta_slow: `yarn`; dimensions turning less often than this are stretched fully.
        truncate: `yarn`; whether the two boundary dimensions are rounded outwards to integers.
        attention_factor: `yarn`; scales cosine and sine, hence attention logits by its square.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    def __post_init__(self):
        check_one_of("rotary kind", self.kind, ROTARY_KINDS)
        for name in ("theta", "factor", "beta_fast", "beta_slow", "attention_factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"rotary {name} must be a positive number, got {value}")
        if self.kind in ("llama3", "yarn"):
            check_at_least(f"rotary original_max_positions (needed by {self.kind})", self.original_max_positions, 1)
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise InputError(
                "rotary low_freq_factor must be positive and below high_freq_factor, "
                f"got {self.low_freq_factor} and {self.high_freq_factor}"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder of the Llama / Qwen2 / Qwen3 family. Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
        vocab_size: V, rows of the embedding (may exceed the tokenizer's size).
        hidden_size: D.
        mlp_size: F.
        num_layers: L.
        num_heads: H.
        num_kv_heads: K, a divisor of H.
        head_dim: E; need not be D / H.
        norm_eps: Added to the mean square in every RMS norm.
        qkv_bias: Whether the query, key and value projections have a bias.
        o_bias: Whether the attention's output projection has a bias.
        qk_norm: Whether queries and keys are RMS-normalised per head before rotation.
        tied_head: Whether the head is the embedding's transpose.
        rotary: The rotary embedding.
        max_positions: Context length in tokens that the model was made for; the computation does not use it.
        init_scale: Standard deviation of freshly drawn kernels.
    """

    vocab_size: int
    hidden_size: int
    mlp_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    rotary: RotaryConfig = field(default_factory=RotaryConfig)
    max_positions: int = 2048
    init_scale: float = 0.02

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "mlp_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
            check_at_least(name, getattr(self, name), 1)
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim must be even for rotary embedding, got {self.head_dim}")
        if not self.norm_eps > 0:
            raise InputError(f"norm_eps must be positive, got {self.norm_eps}")

    @property
    def untied_head(self) -> bool:
        """Whether the head is a parameter of its own."""
        return not self.tied_head
