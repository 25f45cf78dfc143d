"""One loading path for embedded, local and hub models. Safetensors only; no code from a model's repository is run."""

import copy
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from huggingface_hub import list_repo_files, model_info, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError

from stlib import paths
from stlib.generation.engine import Converted
from stlib.generation.models import ModelError, embedded_ldm, embedded_llm
from stlib.generation.quantization import PRECISIONS

WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[\w-]+))?\.safetensors")

DEFAULT_LATENTS, DEFAULT_SIZE = 128, 512  # a side, of pipelines that keep none in their files

log = logging.getLogger(__name__)


def load_llm(name: str = "embedded", device: str = "cpu", dtype: str = "fp32", precision: str = "fp32"):
    """Model and tokenizer of a causal LM: 'embedded', a folder, or a hub name.

    dtype: what it computes in, a plain name in PRECISIONS. precision: of its weights, if one that quantizes.
    Raises ModelError with the remedy.
    """
    tokenizer, _ = load_tokenizer(name)
    scheme, plain = PRECISIONS[precision], {"trust_remote_code": False}
    with _loading(name, embedded_llm) as source:
        options = _weights(source, "fp32" if scheme.only_fp32 else dtype)
        if scheme.llm:
            plain |= {"quantization_config": scheme.llm(options["dtype"]), "device_map": device}
        model = transformers.AutoModelForCausalLM.from_pretrained(source, **plain, **options)
    if not scheme.llm:
        model.to(device)
        if scheme.quantize:
            scheme.quantize(model)
    return model, tokenizer


def load_tokenizer(name: str = "embedded"):
    """Tokenizer and configuration of a causal LM, without its weights. Raises ModelError with the remedy."""
    with _loading(name, embedded_llm) as source:
        return [kind.from_pretrained(source, trust_remote_code=False, local_files_only=Path(source).is_dir())
                for kind in (transformers.AutoTokenizer, transformers.AutoConfig)]


def load_ldm(name: str = "embedded", device: str = "cpu", precision: str = "fp32"):
    """A text-to-image pipeline of diffusers: 'embedded', a folder, or a hub name. Raises ModelError with the remedy."""
    with _loading(name, embedded_ldm) as source:
        pipe = diffusers.AutoPipelineForText2Image.from_pretrained(source, **_weights(source, precision))
    pipe.set_progress_bar_config(disable=True)
    return _quantized(pipe.to(device), precision)


def _quantized(pipe, precision: str):
    """Its denoiser and text encoders in the precision's way, in place."""
    if quantize := PRECISIONS[precision].quantize:
        for name, part in pipe.components.items():
            if name.split("_")[0] in ("unet", "transformer") or name.startswith("text_encoder"):
                quantize(part)
    return pipe


def with_unet(pipe, weights: str, precision: str):
    """The same pipeline, all else shared, with the UNet of that folder of models/, in this precision.

    Raises ModelError if it is not there.
    """
    source = paths.MODELS / weights / "unet"
    if not any(source.glob("*.safetensors")):
        raise ModelError(f"the weights of {weights} are not in {source}: check the clone out again (git status)")
    other = copy.copy(pipe)
    scheme = PRECISIONS[precision]
    other.unet = diffusers.UNet2DConditionModel.from_pretrained(source, dtype=scheme.dtype, use_safetensors=True)
    other.unet.to(pipe.device)
    if scheme.quantize:
        scheme.quantize(other.unet)
    return other


def converted(pipe, precision: str):
    """The same pipeline, all else shared, with its UNet as an OpenVINO graph that computes in this precision."""
    other = copy.copy(pipe)
    other.unet = Converted(copy.deepcopy(pipe.unet), precision)
    return other


def parts(name: str) -> dict:
    """What a pipeline is made of, by its own configuration. Raises ModelError for a model that is not there."""
    with _loading(name, embedded_ldm) as source:
        return diffusers.DiffusionPipeline.load_config(source, local_files_only=Path(source).is_dir())


def image_to_image(pipeline: str) -> bool:
    """Whether diffusers has image to image beside this class of pipelines for text to image."""
    with _loading("embedded", embedded_ldm):
        from diffusers.pipelines import auto_pipeline  # imports every pipeline, with warnings

    families = [family for family, kind in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items()
                if kind.__name__ == pipeline]
    return any(family in auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING for family in families)


def picture_sizes(name: str) -> tuple[int, int]:
    """Pixels of which a side must be a multiple, and those of a picture that leaves them open, by a pipeline's files.

    The VAE's factor times the denoiser's patch; where latents are packed into channels (FLUX), times that as well. Of
    one whose files say nothing 1 and DEFAULT_SIZE. Raises ModelError for a model that is not there.
    """
    with _loading(name, embedded_ldm) as source:
        options = {"local_files_only": Path(source).is_dir()}
        try:
            parts = diffusers.DiffusionPipeline.load_config(source, **options)
            vae, denoiser = (diffusers.AutoencoderKL.load_config(source, subfolder=part, **options)
                             for part in ("vae", "transformer" if parts.get("transformer") else "unet"))
            named = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
            blocks = next(vae[name] for name in named if name in vae)
            packed = math.isqrt(max(1, denoiser["in_channels"] // (vae.get("latent_channels") or vae["z_dim"])))
        except (OSError, KeyError, StopIteration) as error:
            log.warning("the sizes that %s draws are not known: %s", name, str(error).splitlines()[0])
            return 1, DEFAULT_SIZE
    patch = denoiser.get("patch_size") or denoiser.get("all_patch_size") or 1
    factor = 2 ** (len(blocks) - 1)
    return factor * packed * int(np.max(patch)), factor * int(np.max(denoiser.get("sample_size") or DEFAULT_LATENTS))


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
    return "bf16" if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def _source(name: str, embedded: Callable[[], Path]) -> str:
    """What from_pretrained takes: a folder, or the name of a model that the hub, which answers, has.

    The hub is asked first, since loading would retry for minutes.
    """
    if name == "embedded":
        return str(embedded())
    if Path(name).is_dir():
        return name
    try:
        model_info(name, timeout=5.0)  # seconds
        return name
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise OSError(f"there is no folder {name}, and the hub says: {str(error).splitlines()[0]}") from error
    except Exception as error:  # unreachable, in whatever words of the HTTP client: the hub's cache may have it
        log.warning("the hub does not answer (%s): looking for %s in its cache", error, name)
        return snapshot_download(name, local_files_only=True)


def _weights(source: str, precision: str) -> dict:
    """How from_pretrained takes a model's weights: the plain ones, else the variant that parts of it are kept in."""
    is_folder, variants = Path(source).is_dir(), defaultdict(set)
    for file in Path(source).rglob("*.safetensors") if is_folder else map(Path, list_repo_files(source)):
        if name := WEIGHTS.fullmatch(re.sub(r"-\d+-of-\d+", "", file.name)):
            variants[file.parent].add(name["variant"])
    common = set.intersection(*[kept for kept in variants.values() if None not in kept] or [{None}])
    return {"dtype": PRECISIONS[precision].dtype, "variant": precision if precision in common else min(common),
            "use_safetensors": True, "local_files_only": is_folder}


@contextmanager
def _loading(name: str, embedded: Callable[[], Path]) -> Iterator[str]:
    """The source to load from, quietly (the libraries show bars and warnings for loads of a second).

    Failures become a ModelError.
    """
    with ExitStack() as restored:
        for library in (transformers.utils.logging, diffusers.utils.logging):
            restored.callback(library.set_verbosity, library.get_verbosity())
            if library.is_progress_bar_enabled():
                restored.callback(library.enable_progress_bar)
            library.set_verbosity_error()
            library.disable_progress_bar()
        try:
            yield _source(name, embedded)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            remedy = (f"delete its folder in {paths.CACHE} and run `make models` again" if name == "embedded" else
                      "give the folder or hub name (OWNER/MODEL) of a causal LM of transformers or a text-to-image "
                      "pipeline of diffusers, with safetensors weights; for a hub model check the network and, if it "
                      "is private or gated, log in with `hf auth login` or set HF_TOKEN")
            cause = str(error).splitlines()[0].rstrip(".")
            raise ModelError(f"cannot load {name!r}: {cause}. Remedy: {remedy}") from error
