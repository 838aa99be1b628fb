"""Which command, and its exit code.

0 done, 1 a failure, 2 a mistake in what was asked for; 130 and 143 where SIGINT or SIGTERM ended it.
"""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

from selecttkd_jax._errors import InputError, did_you_mean
from selecttkd_jax._extras import what_to_install
from selecttkd_jax._signals import Interrupted, open_signals
from selecttkd_jax.cli._commands import COMMANDS, GLOBAL_OPTIONS, command_class, usage
from selecttkd_jax.cli._plugins import watch_plugins


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    # What stands before the command.
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = {"-h": "--help"}
    given = []
    while words and words[0].startswith("-"):
        given.append(asked.get(words[0], words[0]))
        words = words[1:]
    if "--help" in given or not (words or given):
        print(usage(), end="")
        return 0 if given else 2
    if "--version" in given:
        from selecttkd_jax import __version__

        print(f"selecttkd_jax {__version__}")
        return 0
    _start_logging(quiet="--quiet" in given, verbose="--verbose" in given)
    debug = "--debug" in given

    # The command, and each way in which it may end.
    try:
        _check_global_options(given)
        with open_signals():
            return _run(words)
    except BrokenPipeError:  # who read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _leave(1)
    except (InputError, OSError) as error:
        return _refuse(error, str(error), debug=debug)
    except ModuleNotFoundError as error:
        if (line := what_to_install(error)) is None:
            raise
        return _refuse(error, line, debug=debug)
    except KeyboardInterrupt as error:
        return _end_early(error, ["selecttkd", *given, *words])
    except Exception as error:
        if (remedy := _describe_out_of_memory(error, words[0])) is not None:
            return _refuse(error, remedy, debug=debug)
        if not _several_processes():
            raise
        # The others wait for this process until it ends, which a traceback alone would not do.
        if debug or type(error).__name__ != "JaxRuntimeError":
            traceback.print_exc()
        _say(f"error: {str(error).strip().splitlines()[0]}")
        _say("this process stops; start all of them again to resume from the last checkpoint")
        return _leave(1)


def _refuse(error: Exception, line: str, *, debug: bool) -> int:
    """The end of a command that was asked for something wrong: one line, or its traceback under --debug."""
    if debug and not _several_processes():
        raise error
    if debug:
        traceback.print_exception(error)
    _say(f"error: {line}")
    return _leave(2)


def _end_early(error: KeyboardInterrupt, command: list[str]) -> int:
    """The end of a command that was told to end: what is kept, and what goes on from there."""
    told = error if isinstance(error, Interrupted) else Interrupted()
    _say(f"ended by {told}")
    words = command[1:]
    if "train" in words or ("generate" in words and any(word.startswith("--output") for word in words)):
        _say(f"to go on: {shlex.join(command)}")
    code = 128 + told.signum
    # Where all processes end together, they wait for each other.
    return code if told.agreed else _leave(code)


def _start_logging(*, quiet: bool, verbose: bool) -> None:
    """Our own log, on standard error; other packages' from warnings on, or from information on with --verbose."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(name)s: %(message)s" if verbose else "%(message)s",
        stream=sys.stderr,
        force=True,
    )
    ours = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.getLogger("selecttkd_jax").setLevel(ours)
    if not verbose:
        # Where there is no PyTorch, transformers says so whenever it is imported. Nothing here needs it.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    watch_plugins(verbose=verbose)


def _check_global_options(given: list[str]) -> None:
    for option in given:
        if option not in GLOBAL_OPTIONS:
            known = did_you_mean(option, GLOBAL_OPTIONS)
            raise InputError(f"unknown option {option}{known} before the command (see selecttkd --help)")
    if {"--quiet", "--verbose"} <= set(given):
        raise InputError("--quiet and --verbose contradict each other; give one of them (see selecttkd --help)")


def _run(words: list[str]) -> int:
    if not words:
        raise InputError(f"name a command: {', '.join(COMMANDS)} (see selecttkd --help)")
    name, *rest = words
    if name not in COMMANDS:
        raise InputError(f"no command {name!r}{did_you_mean(name, COMMANDS)}; there are {', '.join(COMMANDS)}")
    from selecttkd_jax.cli._parsing import parse

    parsed = parse(command_class(name), rest, f"selecttkd {name}")
    return 0 if parsed is None else parsed.run()


_LEVERS = {
    "train": "raise training.micro_batches, lower training.head_memory_mib, or set models.remat = full; selecttkd plan "
    "shows what a step needs",
    "evaluate": "raise training.micro_batches or lower training.head_memory_mib",
    "generate": "lower --slots or --max-new-tokens",
}


def _describe_out_of_memory(error: Exception, command: str) -> str | None:
    """What to do where memory ran out, on a device or on the host; None for any other error."""
    on_device = type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
    if not on_device and not isinstance(error, MemoryError):
        return None
    where = "a device's memory" if on_device else "this machine's memory"
    said = (str(error).strip() or "no size is given").splitlines()[0]
    levers = f"; {_LEVERS[command]}" if command in _LEVERS else ""
    return f"{where} is full ({said}){levers}"


def _say(line: str) -> None:
    print(f"selecttkd: {line}", file=sys.stderr)


def _several_processes() -> bool:
    jax = sys.modules.get("jax")  # a mistake that is found before it is imported is said at once
    return jax is not None and jax.distributed.is_initialized()


def _leave(code: int) -> int:
    """The exit code; one process of several leaves at once, so that the others notice and do not wait for it."""
    if _several_processes():
        sys.stderr.flush()
        os._exit(code)
    return code
