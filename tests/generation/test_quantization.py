"""Fewer bits: what each scheme leaves of weights and answer, and what is refused."""

import copy
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from stlib.generation import StoryJob, Storyteller, load_llm
from stlib.generation import quantization as q
from stlib.settings import FieldError

SCHEMES = [name for name, one in q.PRECISIONS.items() if one.quantize and (not one.package or find_spec(one.package))]
LEFT = {"int8": 0.75, "nf4": 0.7, "dynamic-int8": 0.75, "torchao-int8": 0.7, "sdnq-int8": 0.3}  # of the UNet's bytes
ERROR = {"nf4": 0.1, "dynamic-int8": 0.02}  # relative squared error of a step; of the others at most 0.002


@pytest.mark.parametrize("name", SCHEMES)
def test_a_denoiser_in_fewer_bits(storyteller, name):
    unet = storyteller.pipe.unet
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 6, 8, 8, generator=draw), 500, torch.randn(2, 20, 384, generator=draw)
    few = copy.deepcopy(unet)
    q.PRECISIONS[name].quantize(few)
    with torch.no_grad():
        plain, found = unet(*inputs).sample, few(*inputs).sample
    assert q.weight_bytes(few) < LEFT[name] * q.weight_bytes(unet)
    assert 0 < (found - plain).square().mean() / plain.square().mean() < ERROR.get(name, 0.002)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_story_in_fewer_bits(storyteller, name):
    job = StoryJob("a fox", n_panels=2, llm_tokens=8, exact_tokens=True, captions=["a fox", "a key"],
                   method="consistent", steps=2, image_size=64, precision=name)
    told = storyteller.tell(job)
    assert told.provenance["precision"] == name and told.tokens_run == 8
    assert np.ptp([np.asarray(panel) for panel in told.panels]) > 50
    storyteller._writers.pop(name)
    storyteller._pipes = {key: pipe for key, pipe in storyteller._pipes.items() if key[1] != name}


def test_an_llm_of_four_bits_takes_a_third():
    sizes = {name: q.weight_bytes(load_llm(precision=name)[0]) for name in ("fp32", "nf4")}
    assert sizes["nf4"] < sizes["fp32"] / 3


def test_weights_are_counted_once_and_by_their_bits():
    layer = nn.Linear(100, 50, bias=False)
    tied = nn.Sequential(layer, nn.Linear(50, 100), layer)
    assert q.weight_bytes(layer) == 4 * 5000 and q.weight_bytes(tied) == 4 * (5000 + 5100)
    assert q.weight_bytes(layer.half()) == 2 * 5000
    dynamic = nn.Sequential(nn.Linear(100, 50))
    q.PRECISIONS["dynamic-int8"].quantize(dynamic)
    assert q.weight_bytes(dynamic) == 5000 + 4 * 50


def test_small_layers_stay_as_they_are():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(128, 128))
    q.PRECISIONS["nf4"].quantize(module)
    assert type(module[0]) is nn.Linear and type(module[1]) is not nn.Linear


def test_what_a_device_or_an_installation_lacks_is_refused(monkeypatch):
    with pytest.raises(FieldError, match="precision = 'dynamic-int8' runs on cpu only, and the device is cuda:0"):
        q.refuse("dynamic-int8", "cuda:0")
    monkeypatch.setattr(q, "find_spec", lambda package: None)
    with pytest.raises(FieldError, match="'nf4' needs the package bitsandbytes: pip install bitsandbytes"):
        Storyteller.from_pretrained(precision="nf4", device="cpu")
    with pytest.raises(FieldError, match="sdnq"):
        Storyteller.from_pretrained(device="cpu").check(StoryJob(captions="a fox", precision="sdnq-int8"))
    q.refuse("bf16", "cuda")


def test_a_type_to_compute_in_is_a_plain_one():
    with pytest.raises(ValueError, match="unknown llm_dtype 'nf4': use one of auto, fp32, fp16, bf16"):
        Storyteller.from_pretrained(llm_dtype="nf4")
