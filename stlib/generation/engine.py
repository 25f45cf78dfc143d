"""Engines: what computes the denoiser. `torch`, or `openvino`, an optional extra (pip install openvino), on a CPU."""

from importlib.util import find_spec

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from stlib.settings import FieldError

ENGINES = ("torch", "openvino")
ARITHMETIC = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}  # of openvino, by precision
ALTERED = ("joint", "consistent")  # methods that change the UNet's own layers, which a converted graph has no more


def refuse(engine: str, precision: str, method: str, device: str) -> None:
    """Raise FieldError, a ValueError, with the reason, for what an engine cannot do."""
    if engine == "torch":
        return
    reason = ("it runs on a CPU only" if device != "cpu" else
              f"it computes in {', '.join(ARITHMETIC)}, not in {precision}" if precision not in ARITHMETIC else
              f"{method} changes the UNet's layers: use sequential, parallel or autoregressive" if method in ALTERED
              else
              "it is not installed: pip install openvino" if find_spec("openvino") is None else "")
    if reason:
        raise FieldError(f"engine = {engine!r}: {reason}", "engine")


class Converted(nn.Module):
    """A UNet of diffusers as an OpenVINO graph, called by pipelines as the UNet was; its weights lie in the graph.

    The graph is made from one call and takes any batch, size and number of text states.
    """

    def __init__(self, unet, precision: str):
        """Raises FieldError for a UNet that needs more than latents, step and text states."""
        import openvino as ov

        super().__init__()
        self.config, self.dtype, self.device = unet.config, torch.float32, torch.device("cpu")
        if unet.config.addition_embed_type not in (None, "text"):  # of the same states
            raise FieldError("engine = 'openvino': this UNet takes further conditions (SDXL's), use torch", "engine")
        width = unet.config.cross_attention_dim
        example = torch.zeros(2, unet.config.in_channels, 16, 16), torch.tensor(1), torch.zeros(2, 20, width)
        with torch.no_grad():
            graph = ov.convert_model(_Plain(unet.float().eval()), example_input=example)
        hints = {"INFERENCE_PRECISION_HINT": ARITHMETIC[precision], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.graph = ov.Core().compile_model(graph, "CPU", hints)

    def forward(self, sample, timestep, encoder_hidden_states, return_dict: bool = True, **_):
        """As of UNet2DConditionModel."""
        inputs = (sample, torch.as_tensor(timestep), encoder_hidden_states)
        found = torch.from_numpy(self.graph([one.numpy() for one in inputs])[0])
        return UNet2DConditionOutput(sample=found) if return_dict else (found,)


class _Plain(nn.Module):
    """Tensors in, a tensor out, as the converter wants it."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, sample, timestep, states):
        return self.unet(sample, timestep, states, return_dict=False)[0]
