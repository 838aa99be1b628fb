"""From words to a command: tyro parses, and what it refuses becomes one sentence."""

import contextlib
import dataclasses
import io
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import tyro

from selecttkd_jax._errors import InputError, check_one_of, did_you_mean
from selecttkd_jax.cli._commands import GLOBAL_OPTIONS
from selecttkd_jax.cli._option_names import option_types

Command = TypeVar("Command")


def parse(command: type[Command], words: list[str], program: str) -> Command | None:
    """What `words` ask of a command, or None where they ask for its help, which is printed.

    Raises:
        InputError: The words do not fit the command's arguments; one sentence that ends in where to read more.
    """
    box = io.StringIO()
    try:
        words = _as_flags(command, words)
        with contextlib.redirect_stderr(box), _refusals(lambda refusal: _raise(refusal, command, words)):
            return _expand_paths(tyro.cli(command, args=words, prog=program, config=(tyro.conf.AvoidSubcommands,)))
    except InputError as error:
        raise InputError(f"{error} (see {program} --help)") from error
    except SystemExit as stop:
        if not stop.code:
            return None
    raise InputError(f"{_unboxed(box.getvalue())} (see {program} --help)")


def _as_flags(command: Any, words: list[str]) -> list[str]:
    """Words for tyro, to which a yes or no is `--packing` or `--no-packing`; `--packing true` says the same."""
    options = {name.replace("_", "-"): kind for name, kind in option_types(command).items()}
    switches = {f"--{name}" for name, kind in options.items() if kind is bool}
    found: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if equals and option.replace("_", "-") in switches:
            if value.lower() not in ("true", "false"):
                raise InputError(f"{option} must be true or false, got {value!r}")
            found.append(option)
            word = value
        if found and found[-1].replace("_", "-") in switches and word.lower() in ("true", "false"):
            section, dot, name = found.pop().removeprefix("--").rpartition(".")
            found.append(f"--{section}{dot}{'' if word.lower() == 'true' else 'no-'}{name}")
        else:
            found.append(word)
    return found


def _expand_paths(command: Command) -> Command:
    """With `~` as the home directory in every path: shells leave it alone behind `--option=` and within quotes."""
    values = {entry.name: getattr(command, entry.name) for entry in dataclasses.fields(command)}  # type: ignore[arg-type]
    expanded = {name: value.expanduser() for name, value in values.items() if isinstance(value, Path)}
    return dataclasses.replace(command, **expanded)  # type: ignore[type-var]


@contextlib.contextmanager
def _refusals(hook: Callable[[Any], None]) -> Iterator[None]:
    """Has tyro hand its refusals to `hook` as data, before it prints them as a box."""
    try:
        from tyro._errors import on_parse_error
    except ImportError:  # tyro does not promise it
        yield
        return
    with on_parse_error(hook):
        yield


def _raise(refusal: Any, command: Any, words: list[str]) -> None:
    """Raises InputError with the sentence for a refusal; returns where there is none, and tyro prints its own."""
    try:
        sentence = _sentence(refusal, command, words)
    except AttributeError:  # neither does it promise what a refusal holds
        return
    if sentence is not None:
        raise InputError(sentence)


def _sentence(refusal: Any, command: Any, words: list[str]) -> str | None:
    """By the kind of refusal, which its class's name says."""
    kind = type(refusal).__name__
    if kind == "UnrecognizedArgs":
        return _unknown(refusal.tokens, command)
    if kind == "MissingArgs":
        if refusal.unrecognized_tokens:  # a slip in the name of a required option is both
            return _unknown(refusal.unrecognized_tokens, command)
        return _missing([each.arg for each in refusal.missing_arguments])
    if kind == "BadValue":
        count = refusal.argument.lowered.nargs
        return f"{_name(refusal.argument)} needs {f'{count} values' if count not in (1, '?', '*') else 'a value'}"
    if kind == "InvalidChoice":
        # A set, in no order.
        choices = sorted(choice for choice in refusal.choices if choice != "None")
        check_one_of(_name(refusal.argument), refusal.value, choices)
    if kind == "InstantiationFailure" and refusal.argument is not None:
        return _wrong_type(refusal.argument, words)
    return None


def _unknown(tokens: list[str], command: Any) -> str:
    """Of the words that nothing takes, the first option, or else the first word."""
    option = next((token.partition("=")[0] for token in tokens if token.startswith("--")), None)
    if option is None:
        return f"{tokens[0]!r} is one argument too many"
    if option in GLOBAL_OPTIONS:
        return f"{option} goes before the command: selecttkd {option} ..."
    if option.startswith("--data.sources"):
        return "several data sets stand in the configuration file, each as [[data.sources]], not on the command line"
    known = [f"--{name.replace('_', '-')}" for name in option_types(command)]
    # The right name without its section is the likeliest slip.
    bare = option.removeprefix("--").replace("_", "-")
    same = [name for name in known if name.endswith(f".{bare}")]
    return f"unknown option {option}{did_you_mean(option.replace('_', '-'), same or known)}"


def _missing(arguments: list[Any]) -> str:
    names = [_name(argument) for argument in arguments]
    if len(names) > 1:
        return f"{', '.join(names[:-1])} and {names[-1]} are missing"
    text = arguments[0].field.helptext
    text = text() if callable(text) else text  # tyro reads docstrings late
    about = re.split(r"(?<=[.:;])\s", str(text or ""))[0].rstrip(".:;")
    return f"{names[0]} is missing{f': {about[0].lower()}{about[1:]}' if about else ''}"


def _wrong_type(argument: Any, words: list[str]) -> str:
    name = _name(argument)
    got = " ".join(_values_of(name, words)) if name.startswith("-") else ""
    return f"{name} must be {_in_words(argument.field.type_stripped)}{f', got {got!r}' if got else ''}"


def _in_words(kind: Any) -> str:
    """A type in a reader's words."""
    alternatives = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_in_words(one) for one in alternatives)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, alternatives))}"
    if get_origin(kind) is tuple:
        if alternatives[-1] is ...:
            return f"any number of values, each {_in_words(alternatives[0])}"
        return f"{len(alternatives)} values, each {_in_words(alternatives[0])}"
    if get_origin(kind) is dict:
        return "words NAME=VALUE"
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _values_of(option: str, words: list[str]) -> list[str]:
    """What follows an option, the last time it is given."""
    found: list[str] = []
    taken = False
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            taken = name.replace("_", "-") == option
            found = ([value] if equals else []) if taken else found
        elif taken:
            found.append(word)
    return found


def _name(argument: Any) -> str:
    """As it is written on the command line."""
    return str(argument.lowered.metavar) if argument.is_positional() else argument.lowered.name_or_flags[0]


def _unboxed(text: str) -> str:
    """What a box says, in one line: no colours, which a terminal gets, no rules, and nothing below the first rule."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.strip().strip("╭╮╰╯│").strip() for line in plain.splitlines()[1:]]
    rule = next((number for number, line in enumerate(lines) if line and not line.strip("─")), len(lines))
    return re.sub(r"\s+", " ", " ".join(lines[:rule])).strip()
