"""Command line: `python -m training` runs every stage, `python -m training STAGE` one of them. Each resumes."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from training.concepts import WORK


class Stage(StrEnum):
    """The stages, in their order."""

    prepare = "prepare"
    vae = "vae"
    encode = "encode"
    unet = "unet"
    decoder = "decoder"
    lone = "lone"
    export = "export"
    sheets = "sheets"
    stories = "stories"
    judge = "judge"
    joint = "joint"
    consistent = "consistent"
    autoregressive = "autoregressive"
    widths = "widths"
    table = "table"
    all = "all"


def fetch_artwork() -> None:
    from training import npm

    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise ImportError("resvg-py is missing: the emoji are drawn with it; run `pip install -e .[train]`") from error
    npm.fetch()


def prepare() -> None:
    from training.prepare import prepare as compose

    fetch_artwork()
    compose()


def vae(minutes: float, workers: int) -> None:
    from training.prepare import VAE_PICTURES
    from training.vae import train

    files = WORK / "pictures_train.npy", VAE_PICTURES, WORK / "pictures_validation.npy"
    train(*files, minutes, WORK / "vae.pt", workers)


def encode() -> None:
    from training.encode import encode_captions, encode_scenes
    from training.vae import trained_vae

    encode_scenes(trained_vae(WORK / "vae.pt"))
    for seed, table in enumerate(("validation", "held_out", "train", "train-2", "lone", "lone-2"), start=11):
        if not (WORK / f"index_{table}.npy").exists():
            encode_captions(table, seed)


def unet(minutes: float, workers: int) -> None:
    from training.unet import train

    train(minutes, WORK / "unet.pt", workers)


def decoder(minutes: float, workers: int) -> None:
    from training.decoder import tune

    if not (WORK / "vae_tuned").exists():
        tune(minutes, workers)


def lone(minutes: float, workers: int) -> None:
    from training.unet import train_on

    train_on(minutes, WORK / "unet.pt", WORK / "unet_lone.pt", workers)


def stories() -> None:
    from training.stories import prepare as compose
    from training.stories import tabulate

    fetch_artwork()
    compose()
    tabulate()


def judge() -> None:
    from training.judge import train

    train()


def story_unet(kind: str, minutes: float, workers: int, start: Path | None) -> None:
    from training.story_training import export, train

    train(kind, minutes, workers, start)
    export(kind)


def widths(minutes: float, workers: int) -> None:
    from training.story_training import train
    from training.widths import compare

    for kind in ("joint_narrow", "joint_wide"):
        train(kind, minutes, workers)
    compare()


def table() -> None:
    from training.table import fit

    fit()


def export() -> None:
    from training.export import export as write

    write()


def sheets() -> None:
    from training.report import sheets as write

    write()


def main(
    stage: Annotated[Stage, typer.Argument(help="one stage, or all of them in order")] = Stage.all,
    vae_minutes: Annotated[float, typer.Option(min=0.1, help="wall-clock minutes of VAE training")] = 17.0,
    unet_minutes: Annotated[float, typer.Option(min=0.1, help="wall-clock minutes of UNet training")] = 49.0,
    decoder_minutes: Annotated[float, typer.Option(min=0.1, help="wall-clock minutes of decoder tuning")] = 5.5,
    lone_minutes: Annotated[float, typer.Option(min=0.1, help="minutes more, on more lone subjects")] = 20.0,
    joint_minutes: Annotated[float, typer.Option(min=0.1, help="of the UNet with stacked panels")] = 120.0,
    consistent_minutes: Annotated[float, typer.Option(min=0.1, help="of the one with shared attention")] = 50.0,
    autoregressive_minutes: Annotated[float, typer.Option(min=0.1, help="of the one told the last panel")] = 15.0,
    width_minutes: Annotated[float, typer.Option(min=0.1, help="of a narrower and a wider joint one, each")] = 20.0,
    start: Annotated[Path | None, typer.Option(help="of a story's UNet: exported weights that it begins with")] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes of a training: one a core")] = 2,
) -> None:
    """Trains the illustrator from npm's emoji artwork to weights in data/models; an interrupted stage resumes."""
    torch.set_num_threads(workers)
    WORK.mkdir(exist_ok=True)
    steps = {
        Stage.prepare: prepare,
        Stage.vae: lambda: vae(vae_minutes, workers),
        Stage.encode: encode,
        Stage.unet: lambda: unet(unet_minutes, workers),
        Stage.decoder: lambda: decoder(decoder_minutes, workers),
        Stage.lone: lambda: lone(lone_minutes, workers),
        Stage.export: export,
        Stage.sheets: sheets,
        Stage.stories: stories,
        Stage.judge: judge,
        Stage.joint: lambda: story_unet("joint", joint_minutes, workers, start),
        Stage.consistent: lambda: story_unet("consistent", consistent_minutes, workers, start),
        Stage.autoregressive: lambda: story_unet("autoregressive", autoregressive_minutes, workers, start),
        Stage.widths: lambda: widths(width_minutes, workers),
        Stage.table: table,
    }
    for name, step in steps.items():
        if stage in (name, Stage.all):
            print(f"== {name.value}", flush=True)
            step()


if __name__ == "__main__":
    typer.run(main)
