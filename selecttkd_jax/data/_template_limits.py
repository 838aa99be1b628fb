"""A chat template, compiled and rendered once within limits, before any row is.

Templates come with models, and a template is a program: one may loop for hours or ask for gigabytes of text. Jinja's
sandbox bounds neither. Here a template renders one small conversation while its steps, its text and the memory it takes
are bounded; only one that keeps within these is ever rendered without them.
"""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import first_line

MOST_STEPS = 1_000_000  # lines of Python; a template of a hundred lines takes a few thousand for two messages
MOST_CHARACTERS = 10_000_000
MOST_BYTES = 2**29
MOST_BITS = 10_000  # of a whole number

_PROBE = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


class _TooMuch(Exception):
    """A limit was reached."""


@functools.lru_cache(maxsize=64)
def check_limits(template: str) -> None:
    """Raises InputError where a chat template cannot be compiled, or does not keep within the limits.

    A template that refuses the probe passes: the real records report that.

    Args:
        template: The template's source.

    Raises:
        InputError: Says what the template does too much of.
    """
    import jinja2
    import jinja2.nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        with _bounded_memory(MOST_BYTES):
            environment = _bounded_environment()
            if environment.parse(template).find(jinja2.nodes.Pow) is not None:
                raise _TooMuch("computes powers (**)")
            compiled = environment.from_string(template)
            _compile_jinja_template(template)  # which computes constants, also where they are not used
            for prompted in (False, True):
                _render(compiled, prompted)
    except _TooMuch as error:
        raise InputError(f"the chat template {error}, which no chat template needs; set another one") from None
    except MemoryError:
        raise InputError("the chat template asks for gigabytes of text; set another one") from None
    except RecursionError:
        raise InputError("the chat template calls itself without end; set another one") from None
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"the chat template is not valid: {first_line(error)} (its line {error.lineno})") from None


def _render(compiled: Any, add_generation_prompt: bool) -> None:
    """Renders the probe; what the template has against it is nothing to report here."""
    size = 0
    try:
        with _bounded_steps(MOST_STEPS):
            for piece in compiled.generate(messages=_PROBE, add_generation_prompt=add_generation_prompt):
                size += len(piece)
                if size > MOST_CHARACTERS:
                    raise _TooMuch(f"makes more than {MOST_CHARACTERS:,} characters of two short messages")
    except (_TooMuch, MemoryError, RecursionError):
        raise
    except Exception:
        # A template runs what it likes and may refuse the probe alone; a refusal of real rows is told with their line.
        return


def _bounded_environment() -> Any:
    """An environment as transformers makes it, that multiplies within bounds."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    # The extension, the filters and the names that templates know; what is set here counts for this copy alone.
    environment: Any = _compile_jinja_template("").environment.overlay()
    plain = environment.call_binop

    def multiply(context: Any, operator: str, left: Any, right: Any) -> Any:
        for one, other in ((left, right), (right, left)):
            if isinstance(one, int) and hasattr(other, "__len__") and one * len(other) > MOST_CHARACTERS:
                raise _TooMuch("repeats a text millions of times")
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MOST_BITS:
            raise _TooMuch("computes numbers of thousands of digits")
        return plain(context, operator, left, right)

    environment.intercepted_binops = frozenset({"*"})
    environment.call_binop = multiply
    return environment


@contextmanager
def _bounded_steps(most: int) -> Iterator[None]:
    """Raises _TooMuch in this thread after `most` lines of Python."""
    left = most

    def count(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooMuch("loops over two short messages as if without end")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _bounded_memory(more: int) -> Iterator[None]:
    """Makes the process's requests for much memory fail, where the system can (Linux)."""
    try:
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError, ValueError):
        yield
        return
    limit = taken + more
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
