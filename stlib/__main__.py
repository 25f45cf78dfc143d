"""The shell: python -m stlib tell | models | pdf."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Tell stories with an LLM, illustrate them with a latent diffusion model.")


@app.command()
def tell(
    prompt: Annotated[str, typer.Argument(help="what the story is about, such as 'a fox and a red balloon'")],
    method: Annotated[str, typer.Option(help="inference method: sequential or parallel")] = "sequential",
    panels: Annotated[int, typer.Option(help="number of panels, one sentence each")] = 4,
    steps: Annotated[int, typer.Option(help="denoising steps a panel")] = 20,
    llm_tokens: Annotated[int, typer.Option(help="upper limit of story tokens")] = 64,
    guidance: Annotated[float, typer.Option(help="guidance scale; 1 is without guidance")] = 2.5,
    seed: Annotated[int, typer.Option(help="reproduces story and pictures")] = 0,
    llm: Annotated[str, typer.Option(help="a causal LM: 'embedded', a hub name or a folder")] = "embedded",
    ldm: Annotated[str, typer.Option(help="a diffusers text-to-image pipeline: likewise")] = "embedded",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    out: Annotated[Path, typer.Option(help="folder for story, panels, strip and times")] = Path("story"),
):
    """Tell and illustrate one story and save it."""
    from stlib.generation import StoryJob, Storyteller

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and not an empty folder: name another one with --out")
    job = StoryJob(prompt=prompt, n_panels=panels, method=method, steps=steps, llm_tokens=llm_tokens,
                   guidance_scale=guidance, seed=seed)
    storyteller = Storyteller.from_pretrained({"llm": llm, "ldm": ldm}, device=device)
    with tqdm(total=1, desc="loading", bar_format="{desc:>16} |{bar}| {n_fmt}/{total_fmt} [{elapsed}]") as bar:
        result = storyteller.tell(job, on_progress=lambda stage, done, total: _advance(bar, stage, done, total))
    result.save(out)
    print(result.story)
    print(f"{result.timings['total']:.2f} s; saved in {out}/")


def _advance(bar: tqdm, stage: str, done: int, total: int) -> None:
    bar.desc, bar.n, bar.total = stage, done, total
    bar.refresh()


@app.command()
def models():
    """Fetch and check the embedded models; what is there already is kept."""
    from stlib.generation import fetch_models

    fetch_models()


@app.command()
def pdf(target: Annotated[Path, typer.Argument(help="where the PDF goes")]):
    """Typeset the report from what the notebooks of this PROFILE stored."""
    from stlib.report import build_pdf

    print(f"{build_pdf(target)} written")


if __name__ == "__main__":
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
