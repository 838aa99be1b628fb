"""Floating-point operations of matrix products."""

import re
from math import prod

import numpy as np

from selecttkd_jax.planning._hlo import Computation, Instruction, Shape

# What the TPU's attention kernels are called in a program.
SPLASH = re.compile(r"splash_m[hq]a_(fwd|dkv|dq)")


def instruction_flops(computation: Computation, instruction: Instruction) -> int:
    """Operations of an instruction that is a matrix product, 0 of any other; a multiplication and an addition are two.

    Only matrix products count: they are what a peak rate is about, and elementwise work is thousandths of them.
    """
    if instruction.opcode == "dot":
        left = computation.operand_shapes(instruction)[0]
        return 2 * prod(instruction.shapes[0].sizes) * _contracted(left, instruction, r"lhs_contracting_dims={([^}]*)}")
    if instruction.opcode == "custom-call" and "cublas" in instruction.attributes:
        left = computation.operand_shapes(instruction)[0]
        pattern = r'"lhs_contracting_dimensions":\[([^\]]*)\]'
        return 2 * prod(instruction.shapes[0].sizes) * _contracted(left, instruction, pattern)
    if instruction.opcode == "custom-call" and "__cudnn$fmha" in instruction.attributes:
        return _attention_flops(computation.operand_shapes(instruction)[1], instruction)
    if instruction.opcode == "custom-call" and (kernel := SPLASH.match(instruction.name)):
        return _splash_flops(computation.operand_shapes(instruction), kernel[1])
    if instruction.opcode == "convolution":
        left, right = computation.operand_shapes(instruction)[:2]
        return _convolution_flops(left, right, instruction.shapes[0], instruction.attributes)
    return 0


def _contracted(left: Shape, instruction: Instruction, pattern: str) -> int:
    found = re.search(pattern, instruction.attributes)
    if not found:
        return 0
    return prod(left.sizes[int(axis)] for axis in re.findall(r"\d+", found[1]))


def _attention_flops(keys: Shape, instruction: Instruction) -> int:
    """Attention as cuDNN computes it: two products, and five backwards (the scores anew), halved if causal.

    Packed rows count as one text, since a program does not say how long theirs are.
    """
    batch, heads, length, head_dim = instruction.shapes[0].sizes
    products = 5 if "Backward" in instruction.attributes else 2
    whole = 2 * products * batch * heads * length * keys.sizes[1] * head_dim
    return whole // 2 if re.search(r'"mask_type":\s*"(PADDING_)?CAUSAL"', instruction.attributes) else whole


def _splash_flops(operands: list[Shape], kernel: str) -> int:
    """Splash attention is causal: half of two products forwards; of four for keys and values, and three for queries."""
    batch, heads, length, head_dim = max((shape.sizes for shape in operands if len(shape.sizes) == 4), key=prod)
    products = {"fwd": 2, "dkv": 4, "dq": 3}[kernel]
    return products * batch * heads * length * length * head_dim


def _convolution_flops(left: Shape, right: Shape, result: Shape, attributes: str) -> int:
    """A TPU writes matrix products as convolutions, batch axes as windows of which all but one element miss."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels is not None
    inputs, kernel, outputs = (
        dict(zip(names, shape.sizes, strict=True))
        for names, shape in zip(labels.groups(), (left, right, result), strict=True)
    )
    window = re.search(r"window={([^}]*)}", attributes)
    options = {name: text.split("x") for name, text in re.findall(r"(\w+)=(\S+)", window[1])} if window else {}
    pairs = 1
    for axis in range(len(options.get("size", ()))):
        low = options["pad"][axis].partition("_")[0] if "pad" in options else 0
        pairs *= _meetings(
            inputs[str(axis)],
            outputs[str(axis)],
            size=int(options["size"][axis]),
            stride=int(options["stride"][axis]) if "stride" in options else 1,
            low=int(low),
            spread=int(options["lhs_dilate"][axis]) if "lhs_dilate" in options else 1,
            step=int(options["rhs_dilate"][axis]) if "rhs_dilate" in options else 1,
        )
    return 2 * outputs["b"] * outputs["f"] * kernel["i"] * pairs


def _meetings(inputs: int, outputs: int, *, size: int, stride: int, low: int, spread: int, step: int) -> int:
    """Pairs of an output position and a window position that meet an input and not the padding."""
    place = np.arange(outputs)[:, None] * stride + np.arange(size)[None, :] * step - low
    inside = (place >= 0) & (place <= (inputs - 1) * spread) & (place % spread == 0)
    return int(inside.sum())
