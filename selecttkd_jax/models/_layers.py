"""The parts of one decoder block. Axis letters: B T D F H K E L V as in `_array_types`; S counts the keys' slots."""

from math import prod

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from selecttkd_jax._array_types import Params
from selecttkd_jax.models._attention import KEPT
from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models._rotary import rotate

# Below this, the square of a column's length counts as rounding.
SMALLEST_SQUARE = 1e-24


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x^2) + eps) * scale`, statistics in float32."""

    def __init__(self, size: int, eps: float, *, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last axis; the result has x's dtype."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(x.dtype)
        return normed.astype(x.dtype) * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


@jax.custom_vjp
def linear(x: Float[Array, "B T I"], kernel: Float[Array, "I O"]) -> Float[Array, "B T O"]:
    """`x @ kernel`, with the kernel's gradient spelled out as one product.

    JAX's own rule gives the transpose of that gradient, for which XLA on CPU first writes a transposed copy of the
    output's gradient and recomputes whatever elementwise work leads to it: a fifth of an MLP's backward pass.
    """
    return jnp.einsum("BTI,IO->BTO", x, kernel)


def _linear_forward(x, kernel):
    return linear(x, kernel), (x, kernel)


def _linear_backward(saved, output_gradient):
    x, kernel = saved
    return (
        jnp.einsum("BTO,IO->BTI", output_gradient, kernel),
        jnp.einsum("BTI,BTO->IO", x, output_gradient),
    )


linear.defvjp(_linear_forward, _linear_backward)


def apply_adapter(
    y: Float[Array, "B T O"], x: Float[Array, "B T I"], kernel: Float[Array, "I O"], adapter: Params
) -> Float[Array, "B T O"]:
    """A projection's result `y = x W` with its low-rank branch: `x (W + A B)`.

    With a `magnitude` m (DoRA): `x (W + A B) m / ||W + A B||`, one norm a column, which counts as a constant in the
    gradient (DoRA, section 4.3).
    """
    a = adapter["a"].reshape(kernel.shape[0], -1)
    b = adapter["b"].reshape(-1, kernel.shape[1])
    y = checkpoint_name(y + linear(linear(x, a.astype(x.dtype)), b.astype(x.dtype)), KEPT)
    if "magnitude" not in adapter:
        return y
    # ||W + A B||^2 = ||W||^2 + 2 (A^T W) . B + (A^T A B) . B, column by column: no matrix of W's size is made.
    kernel, a, b = jax.lax.stop_gradient((kernel, a, b))
    crossed = 2 * jnp.einsum("IR,IO->RO", a.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
    squares = jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=0) + jnp.sum((crossed + a.T @ a @ b) * b, axis=0)
    # A column of zeros has magnitude 0 and stays what it is.
    ratio = adapter["magnitude"].reshape(-1) * jax.lax.rsqrt(jnp.maximum(squares, SMALLEST_SQUARE))
    ratio = checkpoint_name(ratio, KEPT)
    return y * ratio.astype(y.dtype)[None, None]


class Projection(nnx.Module):
    """A linear map from some axes to others, such as `D -> HE`, with an optional bias over the new ones."""

    adapter: Params | None = None  # a low-rank branch, set for one call by `set_adapters`

    def __init__(
        self,
        inputs: str,
        outputs: str,
        sizes: dict[str, int],
        *,
        bias: bool,
        init_scale: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.in_shape = tuple(sizes[axis] for axis in inputs)
        self.out_shape = tuple(sizes[axis] for axis in outputs)
        draw = nnx.initializers.normal(init_scale)
        self.kernel = nnx.Param(draw(rngs.params(), self.in_shape + self.out_shape, dtype))
        self.bias = nnx.Param(jnp.zeros(self.out_shape, dtype)) if bias else None

    def __call__(self, x: Float[Array, "B T *inputs"]) -> Float[Array, "B T *outputs"]:
        """Applies the map in x's dtype."""
        batch, length = x.shape[:2]
        kernel = self.kernel[...].astype(x.dtype).reshape(prod(self.in_shape), prod(self.out_shape))
        x = x.reshape(batch, length, -1)
        y = linear(x, kernel)
        y = checkpoint_name(y, KEPT) if self.adapter is None else apply_adapter(y, x, kernel, self.adapter)
        y = y.reshape(batch, length, *self.out_shape)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[None, None]


class Attention(nnx.Module):
    """Grouped-query attention with rotary embedding; keys and values are never repeated."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        sizes = {"D": config.hidden_size, "H": config.num_heads, "K": config.num_kv_heads, "E": config.head_dim}
        options = {"sizes": sizes, "init_scale": config.init_scale, "dtype": dtype, "rngs": rngs}
        self.q = Projection("D", "HE", bias=config.qkv_bias, **options)
        self.k = Projection("D", "KE", bias=config.qkv_bias, **options)
        self.v = Projection("D", "KE", bias=config.qkv_bias, **options)
        self.o = Projection("HE", "D", bias=config.o_bias, **options)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps, dtype=dtype) if config.qk_norm else None

    def project(
        self, x: Float[Array, "B T D"], cosine: Float[Array, "B T 1 E/2"], sine: Float[Array, "B T 1 E/2"]
    ) -> tuple[Float[Array, "B T H E"], Float[Array, "B T K E"], Float[Array, "B T K E"]]:
        """Projects, normalises (where the model does) and rotates; values are only projected."""
        queries, keys, values = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        return rotate(queries, cosine, sine), rotate(keys, cosine, sine), values


class GatedMLP(nnx.Module):
    """`(silu(x gate) * (x up)) down`."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        sizes = {"D": config.hidden_size, "F": config.mlp_size}
        options = {"sizes": sizes, "bias": False, "init_scale": config.init_scale, "dtype": dtype, "rngs": rngs}
        self.gate = Projection("D", "F", **options)
        self.up = Projection("D", "F", **options)
        self.down = Projection("F", "D", **options)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the map to every position."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """One decoder layer: attention and MLP, each normalised before and added to the residual stream."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype=dtype)
        self.mlp = GatedMLP(config, dtype=dtype, rngs=rngs)


def set_adapters(block: Block, adapters: Params) -> Block:
    """The block with the low-rank branches of one layer, `{"attention": {"q": {"a", "b"}, ...}, ...}`."""
    for part, projections in adapters.items():
        for name, adapter in projections.items():
            getattr(getattr(block, part), name).adapter = nnx.data(adapter)
    return block
