"""What other packages log where we say it in a line: a CUDA plugin that does not start, a checkpoint that fails."""

import logging
import traceback
from pathlib import Path

# NVIDIA's driver, once it has found a GPU.
_DRIVER = Path("/proc/driver/nvidia/version")


def watch_plugins(*, verbose: bool) -> None:
    """Filters what JAX logs of plugins; a second call replaces the first.

    JAX starts each installed plugin when it first looks for devices, and logs a traceback if one cannot. That of the
    extra `gpu-plan` never can: it brings the compiler and not the libraries that only a GPU needs.

    Args:
        verbose: Leaves the traceback where it is.
    """
    log = logging.getLogger("jax._src.xla_bridge")
    for old in [each for each in log.filters if isinstance(each, _PluginFilter)]:
        log.removeFilter(old)
    if not verbose:
        log.addFilter(_PluginFilter())
    # Orbax logs the traceback of each thread of a save that fails, and raises it, too.
    for name in ("absl", "concurrent.futures"):
        saving = logging.getLogger(name)
        for old in [each for each in saving.filters if isinstance(each, _SavingFilter)]:
            saving.removeFilter(old)
        if not verbose:
            saving.addFilter(_SavingFilter())


class _SavingFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.exc_info is None and "preemption sync point" not in record.getMessage()


class _PluginFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info is None or "cuda" not in str(record.args):
            return True
        if not _DRIVER.exists():
            return False
        cause = traceback.format_exception_only(record.exc_info[1])[-1].strip()
        record.msg = "this machine's GPU is not used, since JAX's plugin for it does not start: %s"
        record.args = (cause,)
        record.exc_info = record.exc_text = None
        return True
