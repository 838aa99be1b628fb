"""Attention: the plain products, which any mask and dtype go through, and the kernels of accelerators.

Axis letters: B T H K E as in `_array_types`; S counts the keys' slots.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from selecttkd_jax._errors import InputError, check_one_of
from selecttkd_jax.models import _cudnn
from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models._splash import SMALLEST_BLOCK, are_texts, attend_in_segments

ATTENTIONS = ("xla", "cudnn", "splash")
"""How attention over whole rows may be computed: see `choose_attention`."""
CUDNN_PACKED = "cudnn_packed"
"""What becomes of `cudnn` where rows are packed."""

# Finite, so that a row without any key (padding) gives a plain average and not NaN.
MASKED_SCORE = -1e30

# The name under which `jax.checkpoint` knows the results of the large products.
KEPT = "kept"

# What the kernels compute in without losing digits that the plain products keep; cuDNN takes both on Ampere as well.
KERNEL_DTYPES = ("bfloat16", "float16")
CUDNN_LARGEST_HEAD = 128
SPLASH_HEAD = 8


def choose_attention(
    asked: str,
    platform: str,
    dtype: str,
    *decoders: DecoderConfig,
    tensor: int = 1,
    packed: bool = False,
    length: int | None = None,
    capability: str | None = None,
) -> tuple[str, str]:
    """How attention over a whole row is computed, one of `ATTENTIONS` or `cudnn_packed`, and why.

    Args:
        asked: `auto`, or one of `ATTENTIONS`.
        platform: What computes: `gpu`, `tpu` or `cpu`.
        dtype: In which.
        *decoders: The models.
        tensor: Over how many devices heads are sharded.
        packed: Whether a row holds several texts.
        length: Tokens in a row; None: not known.
        capability: A GPU's compute capability, such as `9.0`; None: not known.

    Raises:
        InputError: A kernel was asked for that cannot serve.

    Example:
        >>> choose_attention("auto", "cpu", "float32")
        ('xla', 'the platform is cpu')
    """
    check_one_of("models.attention", asked, ("auto", *ATTENTIONS))
    if asked == "xla":
        return "xla", "as asked"
    kernel = {"gpu": "cudnn", "tpu": "splash"}.get(platform) if asked == "auto" else asked
    if kernel is None or platform != ("gpu" if kernel == "cudnn" else "tpu"):
        obstacle = f"the platform is {platform}"
    else:
        own = (
            _find_obstacle_to_cudnn(decoders, packed, capability)
            if kernel == "cudnn"
            else _find_obstacle_to_splash(decoders, length)
        )
        obstacle = own or _find_obstacle(dtype, decoders, tensor)
    if obstacle is None:
        assert kernel is not None
        why = "as asked" if asked == kernel else f"the platform is {platform} and the dtype {dtype}"
        return CUDNN_PACKED if packed and kernel == "cudnn" else kernel, why
    if asked != "auto":
        raise InputError(f'models.attention = "{asked}" cannot serve: {obstacle}; leave it out or set it to "xla"')
    return "xla", obstacle


def _find_obstacle(dtype: str, decoders: tuple[DecoderConfig, ...], tensor: int) -> str | None:
    """Why no kernel serves; None where one does."""
    if dtype not in KERNEL_DTYPES:
        return f"the kernel is for 16 bits, not {dtype}"
    for decoder in decoders:
        if decoder.num_kv_heads % tensor:
            return f"{decoder.num_kv_heads} key heads do not divide over {tensor} devices"
    return None


def _find_obstacle_to_cudnn(decoders: tuple[DecoderConfig, ...], packed: bool, capability: str | None) -> str | None:
    for decoder in decoders:
        if decoder.head_dim % 8 or decoder.head_dim > CUDNN_LARGEST_HEAD:
            return f"heads of size {decoder.head_dim} (a multiple of 8 up to {CUDNN_LARGEST_HEAD} is)"
    if capability is not None and not re.fullmatch(r"\d+\.\d+", capability):
        return f"this GPU is {capability}, and cuDNN is NVIDIA's"
    if not packed:
        return None
    since = ".".join(map(str, _cudnn.SINCE))
    if capability is None or tuple(map(int, capability.split("."))) < _cudnn.SINCE:
        return f"cuDNN takes packed rows (data.packing) from compute capability {since} on, and here is {capability}"
    return None if _cudnn.is_there() else f"JAX {jax.__version__} has no cuDNN attention for packed rows (data.packing)"


def _find_obstacle_to_splash(decoders: tuple[DecoderConfig, ...], length: int | None) -> str | None:
    if length is None or length % SMALLEST_BLOCK:
        return f"rows of {length} tokens (data.max_length; a multiple of {SMALLEST_BLOCK} is served)"
    for decoder in decoders:
        if decoder.head_dim % SPLASH_HEAD:
            return f"heads of size {decoder.head_dim} (a multiple of {SPLASH_HEAD} is served)"
    return None


def attend(
    queries: Float[Array, "B T H E"],
    keys: Float[Array, "B S K E"],
    values: Float[Array, "B S K E"],
    mask: Bool[Array, "B T S"],
    *,
    key_axes: str = "BSKE",
    value_axes: str = "BSKE",
) -> Float[Array, "B T H E"]:
    """`softmax(q k^T / sqrt(E)) v` over the unmasked keys, scores and softmax in float32.

    Scores are written out: memory and traffic grow with T S. Any mask is served.

    The axes of keys and values may stand in another order, which `key_axes` and `value_axes` say.
    """
    batch, length, num_heads, head_dim = queries.shape
    num_kv_heads, slots = keys.shape[key_axes.index("K")], keys.shape[key_axes.index("S")]
    group = num_heads // num_kv_heads
    # Query heads that share a key head become further rows of one product: [B, K, group * T, E] x [B, K, E, S].
    queries = (queries * head_dim**-0.5).reshape(batch, length, num_kv_heads, group, head_dim)
    queries = queries.transpose(0, 2, 3, 1, 4).reshape(batch, num_kv_heads, group * length, head_dim)
    scores = jnp.einsum(f"BKNE,{key_axes}->BKNS", queries, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, num_kv_heads, group, length, slots)
    scores = jnp.where(mask[:, None, None, :, :], scores, MASKED_SCORE)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    weights = weights.reshape(batch, num_kv_heads, group * length, slots)
    mixed = jnp.einsum(f"BKNS,{value_axes}->BKNE", weights, values)
    mixed = mixed.reshape(batch, num_kv_heads, group, length, head_dim)
    mixed = mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, num_heads, head_dim)
    return checkpoint_name(mixed, KEPT)


def is_one_text(positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Bool[Array, " B"]:
    """Rows that are one text from their first slot on, with padding behind it."""
    count = jnp.arange(positions.shape[1])[None, :]
    real = segment_ids != 0
    first = segment_ids[:, :1]
    as_expected = jnp.where(real, (positions == count) & (segment_ids == first), True)
    # Once padding begins it goes on.
    return jnp.all(as_expected, axis=1) & jnp.all(real[:, :-1] | ~real[:, 1:], axis=1)


def find_served(positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"], attention: str) -> Bool[Array, " B"]:
    """Rows that a kernel serves: of others it would ignore the mask."""
    if attention == CUDNN_PACKED:
        return are_texts(positions, segment_ids) & _cudnn.are_few(segment_ids)
    return (are_texts if attention == "splash" else is_one_text)(positions, segment_ids)


class KernelRows(NamedTuple):
    """What a kernel is told of rows instead of a mask.

    Attributes:
        segment_ids: Which text of the row a token belongs to.
        served: From `find_served`. Other rows come out as NaN: such a mask is never ignored in silence.
        texts: Where the texts are, for `cudnn_packed`.
    """

    segment_ids: Int[Array, "B T"]
    served: Bool[Array, " B"]
    texts: _cudnn.Texts | None = None


def describe_rows(positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"], attention: str) -> KernelRows:
    """What all layers tell this kernel of their rows."""
    texts = _cudnn.find_texts(segment_ids) if attention == CUDNN_PACKED else None
    return KernelRows(segment_ids, find_served(positions, segment_ids, attention), texts)


def attend_by_kernel(
    queries: Float[Array, "B T H E"],
    keys: Float[Array, "B T K E"],
    values: Float[Array, "B T K E"],
    rows: KernelRows,
    attention: str,
) -> Float[Array, "B T H E"]:
    """The same over the earlier tokens of each token's text, by a kernel that never writes scores out.

    Padding behind a text needs no mask: no token of the text looks at what comes after it.

    Args:
        queries: Of a whole row.
        keys: Likewise.
        values: Likewise.
        rows: From `describe_rows`.
        attention: `cudnn`, `cudnn_packed` or `splash`.
    """
    if attention == "splash":
        mixed = attend_in_segments(queries, keys, values, rows.segment_ids)
    elif rows.texts is not None:
        mixed = _cudnn.attend_to_texts(queries, keys, values, rows.texts)
    else:
        mixed = jax.nn.dot_product_attention(queries, keys, values, is_causal=True, implementation="cudnn")
    mixed = jnp.where(rows.served[:, None, None, None], mixed, jnp.nan)
    return checkpoint_name(mixed, KEPT)
