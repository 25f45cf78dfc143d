"""Fewer bits: what a precision does to the LLM, the text encoders and the denoiser. One registry, by name.

A scheme quantizes modules in place, by its library's own function where that has one. LLM.int8 and NF4 are
transformers' own for the LLM (`BitsAndBytesConfig`); in the diffusion pipeline bitsandbytes' linear layers are put in
the place of torch's, since diffusers' way to them refuses a CPU.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from stlib.settings import FieldError

LEAST_WEIGHTS = 4096  # of a layer that is worth fewer bits

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at every call what types it converts


@dataclass(frozen=True)
class Precision:
    """dtype: of all that is not quantized. quantize: a module in place; None: nothing is.

    llm: the quantization_config of an LLM that is loaded so, by the type it computes in; None: it is quantized in
    place. only_fp32: an LLM in it computes in no other type. package: what it needs. devices: where it runs.
    """

    dtype: torch.dtype = torch.float32
    quantize: Callable[[nn.Module], None] | None = None
    llm: Callable[[torch.dtype], object] | None = None
    only_fp32: bool = False
    package: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")


def refuse(name: str, device: str) -> None:
    """Raise FieldError, a ValueError, with the reason, if this device or installation lacks what a precision needs."""
    precision = PRECISIONS[name]
    if device.split(":")[0] not in precision.devices:
        raise FieldError(f"precision = {name!r} runs on {' and '.join(precision.devices)} only, and the device is "
                         f"{device}", "precision")
    if precision.package and find_spec(precision.package) is None:
        raise FieldError(f"precision = {name!r} needs the package {precision.package}: pip install "
                         f"{precision.package}", "precision")


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights as they lie in memory, their scales included."""
    held = list(_tensors(module))
    return sum({one.data_ptr(): one.numel() * one.element_size() for one in held}.values())


def _tensors(module: nn.Module):
    for part in module.modules():
        yield from part.parameters(recurse=False)
        yield from part.buffers(recurse=False)
        yield from _packed(part)


def _packed(part: nn.Module):
    """Weights that lie elsewhere: packed by torch's dynamic int8, or the state of bitsandbytes' 4 bits."""
    if isinstance(part, torch.ao.nn.quantized.dynamic.Linear):
        weight, bias = part._weight_bias()
        yield weight.int_repr()
        if bias is not None:
            yield bias
    state = getattr(getattr(part, "weight", None), "quant_state", None)
    for one in (state, getattr(state, "state2", None)):
        if one is not None:
            yield from (one.absmax, one.code)


def _with_layers(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Puts `make(linear)` in the place of each linear layer of some size."""
    for name, part in list(module.named_modules()):
        if type(part) is nn.Linear and part.weight.numel() >= LEAST_WEIGHTS:
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, make(part))


def _llm_int8(module: nn.Module) -> None:
    import bitsandbytes as bnb

    def make(linear):
        layer = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, linear.bias is not None,
                                    has_fp16_weights=False, threshold=6.0)
        layer.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        layer.bias = linear.bias
        return layer.to(linear.weight.device)

    _with_layers(module, make)


def _nf4(module: nn.Module) -> None:
    import bitsandbytes as bnb

    def make(linear):
        layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, linear.bias is not None,
                                  compute_dtype=linear.weight.dtype, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=layer)
        layer.bias = linear.bias
        return layer.to(linear.weight.device)

    _with_layers(module, make)


def _bitsandbytes(**options) -> Callable[[torch.dtype], object]:
    def config(dtype: torch.dtype):
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**options, bnb_4bit_compute_dtype=dtype)

    return config


def _dynamic_int8(module: nn.Module) -> None:
    with warnings.catch_warnings(action="ignore"):  # deprecated for torchao, whose int8 is weights only on a CPU
        torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, torch.qint8, inplace=True)


def _torchao_int8(module: nn.Module) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(module, Int8WeightOnlyConfig())


def _sdnq_int8(module: nn.Module) -> None:
    from sdnq import sdnq_post_load_quant

    sdnq_post_load_quant(module, weights_dtype="int8", quant_conv=True)


PRECISIONS = {
    "fp32": Precision(), "fp16": Precision(torch.float16), "bf16": Precision(torch.bfloat16),
    "int8": Precision(quantize=_llm_int8, llm=_bitsandbytes(load_in_8bit=True), package="bitsandbytes"),
    "nf4": Precision(quantize=_nf4, llm=_bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
                     package="bitsandbytes"),
    "dynamic-int8": Precision(quantize=_dynamic_int8, only_fp32=True, devices=("cpu",)),
    "torchao-int8": Precision(quantize=_torchao_int8, package="torchao"),
    "sdnq-int8": Precision(quantize=_sdnq_int8, package="sdnq"),
}
