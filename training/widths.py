"""What a trunk's width costs and buys: the joint UNets of three widths on stories never trained."""

import copy
import time

import numpy as np
import pandas as pd
import torch
from diffusers import UNet2DConditionModel

from stlib import paths
from stlib.generation import METHODS, Storyteller
from stlib.generation.quality import Judge, alignment, by_story, coherence
from training.concepts import MODEL_DIR, WORK
from training.story_training import trained
from training.story_unets import WIDTHS

N_STORIES, N_TIMED, N_PANELS = 64, 12, 4
OPTIONS = {"num_inference_steps": 20, "height": 128, "width": 128, "guidance_scale": 2.5}


def compare() -> None:
    """Writes data/models/joint/widths.csv: of each trunk its time over that of a batch, and the judge's word."""
    teller, judge = Storyteller.from_pretrained(device="cpu"), Judge()
    told = pd.read_csv(paths.DATA / "stories_held_out.csv", keep_default_na=False)
    stories = [part for _, part in told.groupby("story")][:N_STORIES]
    pipes = {"parallel": teller.pipe} | {name: _pipe(teller.pipe, name) for name in WIDTHS}
    ratios, rows = _ratios(pipes, list(stories[0]["caption"])), []
    for name, trunk in WIDTHS.items():
        panels = [panel for number, story in enumerate(stories) for panel in METHODS["joint"].whole(
            pipes[name], list(story["caption"]), OPTIONS, number, lambda n: None).panels]
        asked = pd.concat(stories, ignore_index=True)
        read, _ = judge.read(panels)
        right = alignment(read, asked)["object"].groupby(asked["story"]).mean().dropna().to_numpy()
        alike = coherence(read, asked, asked["story"])[["style", "look", "place"]].mean(axis=1).to_numpy()
        rows.append({"trunk": "/".join(map(str, trunk)), "parameters (M)": _millions(pipes[name].unet)}
                    | _with_ends("time / parallel", ratios[name]) | _with_ends("objects right", _mean(right))
                    | _with_ends("coherence", _mean(alike)))
    pd.DataFrame(rows).round(3).to_csv(MODEL_DIR.with_name("joint") / "widths.csv", index=False)
    print(pd.DataFrame(rows).round(3).to_string(index=False), flush=True)


def _pipe(base, name: str):
    trained(name).save(WORK / name)
    other = copy.copy(base)
    other.unet = UNet2DConditionModel.from_pretrained(WORK / name / "unet", dtype=torch.float32)
    return other


def _ratios(pipes: dict, captions: list[str]) -> dict:
    """Of each pipe's denoising time to the batch's, one thread, in rounds: geometric mean and 95 % interval."""
    torch.set_num_threads(1)
    logs = {name: [] for name in pipes}
    for seed in range(-1, N_TIMED):
        for name, pipe in pipes.items():
            draw = METHODS["parallel" if name == "parallel" else "joint"].whole
            began = time.monotonic()
            draw(pipe, captions[:N_PANELS], OPTIONS | {"num_inference_steps": 5}, seed + 1, lambda n: None)
            if seed >= 0:
                logs[name].append(np.log(time.monotonic() - began))
    rounds = {name: np.array(values) - np.array(logs["parallel"]) for name, values in logs.items()}
    return {name: np.exp(_mean(values)) for name, values in rounds.items()}


def _mean(values: np.ndarray) -> np.ndarray:
    return np.array(by_story(lambda chosen: values[chosen].mean(), len(values), np.random.default_rng(0)))


def _with_ends(name: str, ends: np.ndarray) -> dict:
    return dict(zip((name, f"{name}, low", f"{name}, high"), ends, strict=True))


def _millions(unet) -> float:
    return sum(part.numel() for part in unet.parameters()) / 1e6
