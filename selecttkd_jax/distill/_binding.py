"""Functions by name, bound to those of their options that a configuration gives."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from selecttkd_jax._errors import InputError, check_one_of


def bind_named(
    config: Any, kind: str, names: Sequence[str], table: Mapping[str, Callable], options: Mapping[str, str]
) -> list[Callable]:
    """The functions called `names`, each with those of the given options that it has.

    Args:
        config: Has the options as attributes, None where one is left out.
        kind: The option of [objective] that names the functions, for messages.
        names: Of functions.
        table: The functions by name.
        options: Each option's name, and the parameter of a function that it sets.

    Raises:
        InputError: An unknown name, an option that none of the functions has, or one that is needed and left out.
    """
    for name in names:
        check_one_of(f"objective.{kind}", name, table)
    given = {option: parameter for option, parameter in options.items() if getattr(config, option) is not None}

    def takes(name: str, parameter: str) -> bool:
        return parameter in inspect.signature(table[name]).parameters

    for option, parameter in given.items():
        # Silently ignoring it would train something else than what was asked for.
        if not any(takes(name, parameter) for name in names):
            users = [other for other in table if takes(other, parameter)]
            raise InputError(
                f"objective.{option} is an option of {', '.join(users)}, not of {' + '.join(names)}; leave it out or "
                f"choose another objective.{kind}"
            )

    def bind(name: str) -> Callable:
        bound = {parameter: getattr(config, option) for option, parameter in given.items() if takes(name, parameter)}
        for option, parameter in options.items():
            needed = takes(name, parameter) and inspect.signature(table[name]).parameters[parameter]
            if needed and needed.default is needed.empty and parameter not in bound:
                raise InputError(f"objective.{kind} {name} needs objective.{option}; set it")
        return partial(table[name], **bound) if bound else table[name]

    return [bind(name) for name in names]
