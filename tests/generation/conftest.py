"""The embedded models, loaded once, and tiny models of the real classes."""

import pytest
from tiny import tiny_flux, tiny_llama, tiny_sd, tiny_sdxl

from stlib.generation import Storyteller

__all__ = ["storyteller", "tiny_flux", "tiny_llama", "tiny_sd", "tiny_sdxl"]


@pytest.fixture(scope="session")
def storyteller():
    return Storyteller.from_pretrained(device="cpu").load()
