"""A run's weights: what is frozen, what is trained."""

import logging
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selecttkd_jax import data, models
from selecttkd_jax._array_types import Params
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._evaluators import make_held_out
from selecttkd_jax.training import Frozen, Pair, stream_key

logger = logging.getLogger(__name__)


def load_teacher(mesh: Mesh, config: RunConfig, pair: Pair, rows: data.Rows, shardings: Params | None) -> Params | None:
    """The teacher's parameters in `models.teacher_dtype`; for int8 the log says what that costs on `rows`."""
    if config.models.teacher is None or pair.teacher is None:
        return None
    if config.models.teacher_dtype != "int8":
        return models.from_pretrained(config.models.teacher, jnp.dtype(config.models.teacher_dtype), shardings).params
    exact = models.from_pretrained(config.models.teacher, jnp.dtype(config.models.compute_dtype), shardings).params
    params = models.quantize_int8(exact)
    both = replace(pair, student=pair.teacher, lora=None)
    cost = make_held_out(mesh, config, both, Frozen(teacher=exact), rows)(params)
    logger.info(
        "int8 teacher: KL(%s teacher || int8 teacher) = %.2e nats, same first choice on %.2f %% of %d held-out tokens",
        config.models.compute_dtype,
        cost["kl"],
        100 * cost["top1_agreement"],
        cost["tokens"],
    )
    return params


def trained_weights(mesh: Mesh, config: RunConfig, student: models.Pretrained) -> Params:
    """What the optimizer changes: the student's parameters, or fresh adapters of them."""
    if config.lora is None:
        return student.params
    key = stream_key(jax.random.key(config.seed), "adapters", jnp.int32(0))
    init = jax.jit(
        partial(models.init_lora, config.lora, student.config), out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    lora = init(student.params, key)
    logger.info("adapters: %.2f M parameters are trained", models.count_params(lora) / 1e6)
    return lora
