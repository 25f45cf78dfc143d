"""One loading path for embedded, local and hub models. Safetensors only; no code from a model's repository is run."""

import logging
import math
import re
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from huggingface_hub import list_repo_files, model_info, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError

from stlib.generation.models import ModelError, embedded_ldm, embedded_llm

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LLM_KIND, LDM_KIND = "a causal LM of transformers", "a text-to-image pipeline of diffusers"
WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[\w-]+))?\.safetensors")
HUB_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


def load_llm(name: str = "embedded", device: str = "cpu", dtype: str = "auto"):
    """Model and tokenizer of a causal LM: 'embedded', a folder, or a hub name. dtype: a name in PRECISIONS, or 'auto'.

    Raises ModelError with the remedy.
    """
    source, options = _source(name, embedded_llm)
    dtype = choose_llm_dtype(device) if dtype == "auto" else dtype
    tokenizer, _ = load_tokenizer(name)
    with _loading(name, source, LLM_KIND):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=PRECISIONS[dtype], variant=_variant(source, options, dtype), use_safetensors=True,
            trust_remote_code=False, **options,
        )
    return model.to(device), tokenizer


def load_tokenizer(name: str = "embedded"):
    """Tokenizer and configuration of a causal LM, without its weights. Raises ModelError with the remedy."""
    source, options = _source(name, embedded_llm)
    with _loading(name, source, LLM_KIND):
        return [kind.from_pretrained(source, trust_remote_code=False, **options)
                for kind in (transformers.AutoTokenizer, transformers.AutoConfig)]


def load_ldm(name: str = "embedded", device: str = "cpu", precision: str = "fp32", weights: str = "illustrator"):
    """A text-to-image pipeline of diffusers: 'embedded' (with the `weights` of that folder of models/), a folder, or a
    hub name. Raises ModelError with the remedy.
    """
    source, options = _source(name, partial(embedded_ldm, weights))
    with _loading(name, source, LDM_KIND):
        pipe = diffusers.AutoPipelineForText2Image.from_pretrained(
            source, dtype=PRECISIONS[precision], variant=_variant(source, options, precision), use_safetensors=True,
            **options,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def size_multiple(name: str) -> int:
    """Pixels of which a picture's side must be a multiple, by the pipeline's own configuration; 1 if it says nothing.

    The VAE's factor times the denoiser's patch; where latents are packed into channels (FLUX), times that as well.
    """
    source, options = _source(name, embedded_ldm)
    try:
        parts = diffusers.DiffusionPipeline.load_config(source, **options)
        denoiser = "transformer" if parts.get("transformer") else "unet"
        vae, denoiser = (diffusers.AutoencoderKL.load_config(source, subfolder=part, **options)
                         for part in ("vae", denoiser))
        named = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
        blocks = next(vae[name] for name in named if name in vae)
        packed = math.isqrt(max(1, denoiser["in_channels"] // (vae.get("latent_channels") or vae["z_dim"])))
    except (OSError, KeyError, StopIteration) as error:
        log.warning("the sizes that %s draws are not known: %s", name, str(error).splitlines()[0])
        return 1
    patch = denoiser.get("patch_size") or denoiser.get("all_patch_size") or 1
    return 2 ** (len(blocks) - 1) * packed * int(np.max(patch))


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


def _variant(source: str, options: dict, precision: str) -> str | None:
    """Which weights to load: None for the plain ones, else the variant (such as fp16) that a part of it is kept in."""
    if options["local_files_only"]:
        folder = source if Path(source).is_dir() else snapshot_download(source, local_files_only=True)
        files = Path(folder).rglob("*.safetensors")
    else:
        files = map(Path, list_repo_files(source))
    kept = defaultdict(set)
    for file in files:
        if name := WEIGHTS.fullmatch(re.sub(r"-\d+-of-\d+", "", file.name)):
            kept[file.parent].add(name["variant"])
    needed = [variants for variants in kept.values() if None not in variants]
    common = set.intersection(*needed) if needed else {None}
    return precision if precision in common else min(common)


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
