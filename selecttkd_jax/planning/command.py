"""From a configuration and a target to printed tables."""

import logging
from dataclasses import dataclass
from typing import Annotated

import jax
import tyro

from selecttkd_jax import models
from selecttkd_jax.config import RunConfig
from selecttkd_jax.planning.estimate import estimate
from selecttkd_jax.planning.machines import target_devices
from selecttkd_jax.planning.program import TooLargeError, compile_step
from selecttkd_jax.planning.report import largest_report, setting_report, step_report
from selecttkd_jax.planning.search import largest_batches
from selecttkd_jax.planning.targets import parse_target

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanOptions:
    """Compile the training step of CONFIG.toml for a machine that is not here, and print what it needs of it.

    Of the models, config.json is enough. An option of the configuration is --section.field value.
    """

    target: Annotated[str, tyro.conf.arg(metavar="MACHINE")]
    """tpu:v5e:4x4, tpu:v5p:2x2x2, tpu:v6e:4x4, gpu:a100-80gb:4, gpu:h100:8, cpu:8 and their like."""
    search: bool = True
    """Search the largest batch that fits, with and without recomputation; takes several compilations."""


def plan(config: RunConfig, options: PlanOptions) -> bool:
    """Prints a plan; returns whether the configured step fits.

    Compiles on this machine's CPU, whatever devices it has.

    Raises:
        InputError: The target is unknown, its compiler missing, or the configuration does not suit it.
    """
    target = parse_target(options.target)
    pair = abstract_pair(config)
    # An accelerator that is here would only be waited for.
    jax.config.update("jax_platforms", "cpu")
    devices = target_devices(target)
    logger.info("compiling for %s: batch %d", target.name, config.data.batch_size)
    try:
        step = compile_step(config, pair, devices)
        report = step_report(target, step, estimate(config, target, step))
    except TooLargeError as error:
        step, report = None, f"\nThe configured step does not fit: {error}\n"
    print(setting_report(config, target) + report, end="", flush=True)
    if options.search:
        print(largest_report(config, target, largest_batches(config, pair, target, devices, step)), end="")
    return step is not None and step.memory.peak <= target.device.usable_memory


def abstract_pair(config: RunConfig) -> models.Pair:
    """The pair of models as far as their `config.json` says."""
    student, teacher = (models.read_config(name)[0] for name in (config.models.student, config.models.teacher))
    return models.Pair(
        student=student,
        teacher=teacher,
        # A tokenizer that is smaller still would mask some more columns and change no size.
        vocab_size=min(student.vocab_size, teacher.vocab_size),
        dtype=config.models.compute_dtype,
        remat=config.models.remat,
        lora=config.lora,
    )
