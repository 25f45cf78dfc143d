"""One loading path for embedded, local and hub models. Safetensors only; no code from a model's repository is run."""

import logging
import re
from contextlib import contextmanager
from pathlib import Path

import diffusers
import torch
import transformers
from huggingface_hub import model_info
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError

from stlib.generation.models import ModelError, embedded_ldm, embedded_llm

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HUB_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


def load_llm(name: str = "embedded", device: str = "cpu", dtype: str = "auto"):
    """Model and tokenizer of a causal LM: 'embedded', a folder, or a hub name. dtype: a name in PRECISIONS, or 'auto'.

    Raises ModelError with the remedy.
    """
    source, options = _source(name, embedded_llm)
    dtype = PRECISIONS[choose_llm_dtype(device) if dtype == "auto" else dtype]
    with _loading(name, source, "a causal LM of transformers"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
    return model.to(device), tokenizer


def load_ldm(name: str = "embedded", device: str = "cpu", precision: str = "fp32"):
    """A text-to-image pipeline of diffusers: 'embedded', a folder, or a hub name. Raises ModelError with the remedy."""
    source, options = _source(name, embedded_ldm)
    with _loading(name, source, "a text-to-image pipeline of diffusers"):
        pipe = diffusers.AutoPipelineForText2Image.from_pretrained(
            source, dtype=PRECISIONS[precision], use_safetensors=True, **options
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def choose_device(device: str = "auto") -> str:
    """'auto': CUDA when there is one. Raises ValueError for a device that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda") or (device.startswith("cuda") and not torch.cuda.is_available()):
        raise ValueError(f"device {device!r}: use auto, cpu or, where there is a CUDA GPU, cuda or cuda:0")
    return device


def choose_llm_dtype(device: str) -> str:
    """bf16 where the processor computes in it (a CPU without does so in software, slower than fp32), else fp32."""
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    has_mkldnn = torch.backends.mkldnn.is_available()
    return "bf16" if has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def _source(name: str, embedded) -> tuple[str, dict]:
    """What from_pretrained takes: a folder or a hub name, and whether the hub may be asked."""
    if name == "embedded":
        return str(embedded()), {"local_files_only": True}
    if Path(name).is_dir():
        return name, {"local_files_only": True}
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(f"there is no folder {name}: give 'embedded', a model's folder or a hub name like OWNER/MODEL")
    return name, {"local_files_only": not _on_hub(name)}


def _on_hub(name: str) -> bool:
    """Whether the hub answers and has the model; asked first, since loading would retry for minutes."""
    try:
        model_info(name, timeout=HUB_TIMEOUT_S)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise ModelError(
            f"no model {name!r}: no such folder, and the hub does not show it to you. Check the spelling; for a "
            "private or gated model log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except Exception as error:  # unreachable, in whatever words of the HTTP client: the hub's cache may have it
        log.warning("the hub does not answer (%s): looking for %s in its cache", error, name)
        return False
    return True


@contextmanager
def _loading(name: str, source: str, kind: str):
    """Load quietly (the libraries show bars and warnings for loads of a second); failures become a ModelError."""
    libraries = (transformers.utils.logging, diffusers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        remedy = (
            f"delete the folder {source} and run `make models` again"
            if name == "embedded"
            else f"give a folder or hub name of {kind} with safetensors weights; for a hub model check the network "
            "and, if it is private or gated, log in with `hf auth login` or set HF_TOKEN"
        )
        raise ModelError(f"cannot load {name!r}: {str(error).splitlines()[0]}. Remedy: {remedy}") from error
    finally:
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()
