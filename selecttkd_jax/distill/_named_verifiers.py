"""Verifiers, controls and shadows by name, for configuration files and the command line."""

import inspect
from collections.abc import Callable
from typing import Any

from selecttkd_jax import selection
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import InputError, check_at_least, check_one_of
from selecttkd_jax.distill._binding import bind_named
from selecttkd_jax.distill._shadows import Shadow

VERIFIERS: dict[str, Callable] = {
    "accept_all": selection.accept_all,
    "greedy_top_k": selection.greedy_top_k,
    "spec_k": selection.spec_k,
    "spec_label": selection.spec_label,
    "label_in_top_k": selection.label_in_top_k,
    "entropy": selection.entropy_gate,
    "hellinger": selection.hellinger,
    "hellinger_gate": selection.hellinger_gate,
    "nucleus": selection.nucleus,
    "random": selection.random_gate,
}
TAKES_K = ("greedy_top_k", "spec_k", "label_in_top_k")
DEFAULT_K = 5
OF_ANOTHER = ("invert", "random", "rescale")
"""Controls that are made of another verifier."""
OPTIONS = {"k": "k", "threshold": "threshold", "entropy_of": "source", "tau": "tau", "rate": "rate"}
"""An option of [objective] and the parameter of a verifier that it sets."""


def build_verifiers(config: Any) -> tuple[Callable, tuple[Shadow, ...]]:
    """The verifier in force, and the shadows, of an `ObjectiveConfig`.

    Raises:
        InputError: An unknown name, an option that no named function has, or one that is needed and left out.
    """
    name, of = config.verifier, config.of
    check_one_of("objective.verifier", name, (*VERIFIERS, *(one for one in OF_ANOTHER if one not in VERIFIERS)))
    shadows: tuple[str, ...] = tuple(config.shadows or ())
    for shadow in shadows:
        check_one_of("objective.shadows", shadow, VERIFIERS)
    if len(set(shadows)) < len(shadows):
        raise InputError(f"objective.shadows names a verifier twice: {', '.join(shadows)}")
    if of is not None:
        check_one_of("objective.of", of, VERIFIERS)
        if name not in OF_ANOTHER:
            raise InputError(f"objective.of is an option of {', '.join(OF_ANOTHER)}, not of {name}; leave it out")
    elif name in OF_ANOTHER and name not in VERIFIERS:
        raise InputError(f"objective.verifier {name} is made of another: name it as objective.of")
    if name == "random" and "random" not in shadows and (of is None) == (config.rate is None):
        raise InputError(
            "objective.verifier random needs either objective.rate or objective.of, a verifier at whose rate it accepts"
        )
    # A random shadow without a rate has that of the verifier in force.
    bound = [shadow for shadow in shadows if shadow != "random" or config.rate is not None]
    names = list(dict.fromkeys([of or name, *bound]))
    functions = dict(zip(names, bind_named(config, "verifier", names, VERIFIERS, OPTIONS), strict=True))
    verifier = functions[of or name]
    if of is not None:
        verifier = selection.invert(verifier) if name == "invert" else selection.at_rate_of(verifier)
    return verifier, tuple((shadow, functions.get(shadow) if shadow in bound else None) for shadow in shadows)


def find_label_readers(config: Any) -> list[str]:
    """Of an `ObjectiveConfig`, the options that name a verifier which looks at the labels, with its name."""
    named = [("verifier", config.verifier), ("of", config.of), *(("shadows", name) for name in config.shadows or ())]
    return [
        f"objective.{option} {name}"
        for option, name in named
        if name in VERIFIERS and "labels" in inspect.signature(VERIFIERS[name]).parameters
    ]


def check_verifier_options(config: Any) -> None:
    """Raises InputError where an option of a verifier is out of range."""
    if config.k is not None:
        check_at_least("objective.k", config.k, 1)
    if config.threshold is not None:
        check_at_least("objective.threshold", config.threshold, 0)
    if config.entropy_of is not None:
        check_one_of("objective.entropy_of", config.entropy_of, ("teacher", "student"))
    for option in ("tau", "rate"):
        if getattr(config, option) is not None:
            check_in_range(f"objective.{option}", getattr(config, option), 0, 1)
    if config.tau is not None:
        _check_tau(config.tau, {config.verifier, config.of, *(config.shadows or ())})
    if (config.verifier, config.of) == ("invert", "random"):
        raise InputError(
            "objective.verifier invert of random: what it accepts is random, too; set verifier to random, with 1 minus "
            "the rate"
        )
    if config.verifier == "hellinger" and not (config.expected and config.floor == 0):
        raise InputError(
            "objective.verifier hellinger is itself the weight of a token (V = H): set objective.expected = true "
            "and objective.floor = 0.0"
        )
    if config.verifier == "rescale" and config.normalizer == "weight":
        raise InputError(
            'objective.verifier rescale scales the loss by a mean weight, and objective.normalizer = "weight" divides '
            'by it again; choose "sequence" or "token"'
        )


def _check_tau(tau: float, named: set[str | None]) -> None:
    """Raises InputError where tau would mean two things, or nothing to the verifier it is of."""
    if named >= {"nucleus", "hellinger_gate"}:
        raise InputError(
            "objective.tau is a mass of nucleus and a distance of hellinger_gate, which are both named: leave tau out, "
            "and each has its own default, or name one of them"
        )
    if "nucleus" in named and tau == 0:
        raise InputError(f"objective.tau of nucleus must be above 0, got {tau}: no teacher mass is below that")
