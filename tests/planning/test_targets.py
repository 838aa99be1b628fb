"""Targets by name, and what is said about those that cannot be planned for."""

import importlib.util

import jax
import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.planning._machines import gpu_description, target_devices
from selecttkd_jax.planning._targets import DEVICES, parse_target


@pytest.mark.parametrize(
    ("text", "count", "hosts"),
    [
        ("tpu:v5p:2x2x2", 8, 2),
        ("tpu:v5e:4x4", 16, 2),
        ("gpu:a100-80gb:4", 4, 1),
        ("gpu:h100:16", 16, 2),
        ("cpu:8", 8, 1),
    ],
)
def test_the_devices_of_a_target(text, count, hosts):
    target = parse_target(text)
    assert (target.count, target.hosts) == (count, hosts)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5p:2x2x2", "platform must be one of tpu, gpu, cpu"),
        ("tpu:v5x:4x4", "did you mean 'v5"),
        ("tpu:v5p:8", "has a shape, such as tpu:v5p:2x2x2"),
        ("tpu:v5p", "has a shape"),
        ("gpu:h10:8", "did you mean 'h100'"),
        ("gpu:h100:0", "needs a number of devices"),
        ("gpu:h100", "needs a number of devices"),
        ("gpu:h100:12", "in groups of 8"),
        ("cpu:many", "needs a number of devices"),
    ],
)
def test_a_mistaken_target_is_answered_with_what_there_is(text, said):
    with pytest.raises(InputError, match="target") as error:
        parse_target(text)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "extra"), [("tpu:v5e:2x2", "tpu-plan"), ("gpu:h100:4", "gpu-plan")], ids=["tpu", "gpu"]
)
def test_a_missing_compiler_is_named_with_its_extra(text, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"pip install '\.\[{extra}\]'"):
        target_devices(parse_target(text))


def test_more_cpus_than_the_process_has():
    assert len(jax.devices()) == 8
    with pytest.raises(InputError, match="xla_force_host_platform_device_count=9"):
        target_devices(parse_target("cpu:9"))


@pytest.mark.parametrize("model", DEVICES["gpu"])
def test_every_gpu_is_described_to_the_compiler(model):
    text = gpu_description(parse_target(f"gpu:{model}:1"))
    assert f"device_memory_size: {DEVICES['gpu'][model].memory}\n" in text


def test_a_device_is_as_fast_as_its_faster_sibling_is_faster():
    """Ratios that anyone knows: a slip in a table of powers of ten would break one of them."""
    gpu, tpu = DEVICES["gpu"], DEVICES["tpu"]
    assert gpu["h100"].flops / gpu["a100-80gb"].flops == pytest.approx(3.17, abs=0.01)
    assert tpu["v6e"].flops / tpu["v5e"].flops == pytest.approx(4.66, abs=0.01)
    assert tpu["v5p"].memory / tpu["v5e"].memory == pytest.approx(6.08, abs=0.01)
    for device in (*gpu.values(), *tpu.values()):
        # Operations for each byte of memory traffic at which products stop waiting for memory.
        assert 100 < device.flops / device.memory_rate < 600
