"""A CUDA plugin that does not start: silence without a GPU, a line with one, and JAX's own words under --verbose."""

import logging

import pytest

from selecttkd_jax.cli import _plugins

LOG = logging.getLogger("jax._src.xla_bridge")


@pytest.fixture(autouse=True)
def filters_as_before():
    before = list(LOG.filters)
    yield
    LOG.filters[:] = before


def fail_to_start(plugin):
    try:
        raise RuntimeError("cuDNN not found.")
    except RuntimeError:
        LOG.exception("Jax plugin configuration error: Exception when calling %s.initialize()", plugin)


def test_silence_where_there_is_no_gpu(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(_plugins, "_DRIVER", tmp_path / "absent")
    _plugins.watch_plugins(verbose=False)
    fail_to_start("jax_plugins.xla_cuda12")
    assert not caplog.records
    fail_to_start("jax_plugins.xla_other")
    LOG.warning("another message")
    assert [record.exc_info is not None for record in caplog.records] == [True, False]


def test_a_line_where_there_is_one(monkeypatch, tmp_path, caplog):
    (tmp_path / "version").touch()
    monkeypatch.setattr(_plugins, "_DRIVER", tmp_path / "version")
    _plugins.watch_plugins(verbose=False)
    fail_to_start("jax_plugins.xla_cuda12")
    (record,) = caplog.records
    assert record.getMessage().endswith("does not start: RuntimeError: cuDNN not found.") and not record.exc_info


def test_verbose_leaves_the_traceback(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(_plugins, "_DRIVER", tmp_path / "absent")
    _plugins.watch_plugins(verbose=False)
    _plugins.watch_plugins(verbose=True)
    fail_to_start("jax_plugins.xla_cuda12")
    assert caplog.records[0].exc_info
