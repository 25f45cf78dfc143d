"""Training of the UNets whose panels know of each other, for a budget of wall-clock time."""

import json
import time
from pathlib import Path

import torch

from training import parallel
from training.concepts import MODEL_DIR, WORK
from training.diffusion import noised
from training.stories import Stories
from training.story_unets import KINDS
from training.unet import Training
from training.vae import cosine_rate

N_CHECKED, CHECKED_AT_ONCE = 96, 24  # stories


class StoryTraining(Training):
    """A `Training` of one of the KINDS on stories."""

    def loss(self, data: Stories) -> torch.Tensor:
        """Of a random batch: the weighted error of the velocity."""
        x0, weights, states = data.batch(self.unet.batch, self.generator)
        noisy, t, target = noised(x0, self.generator, self.unet.shared_noise)
        panels = self.unet.panels(self.generator)
        found = self.unet(noisy, t, states[:, :panels], x0, self.generator)
        return (weights[:, :panels] * (found - target[:, :panels]).square()).mean()


@torch.no_grad()
def errors(net, data: Stories) -> str:
    """The error of the velocity on fixed noise: mean, by quarter of t from low noise to high, and by panel."""
    found, steps = [], []
    for first in range(0, N_CHECKED, CHECKED_AT_ONCE):
        x0, _, states = data.get(torch.arange(first, first + CHECKED_AT_ONCE))
        noisy, t, target = noised(x0, torch.Generator().manual_seed(9 + first), net.shared_noise)
        found.append((net(noisy, t, states, x0, None) - target).square().mean((2, 3, 4)))
        steps.append(t)
    error, quarters = torch.cat(found), torch.cat(steps).argsort().chunk(4)
    by_quarter, by_panel = ([round(part.mean().item(), 3) for part in parts]
                            for parts in ([error[quarter] for quarter in quarters], error.T))
    return f"{error.mean():.4f}, by quarter {by_quarter}, by panel {by_panel}"


def _work(kind: str, minutes: float, checkpoint: Path, start: Path | None) -> None:
    net = KINDS[kind]()
    if start:
        net.load(start)
    state, data, held = StoryTraining(checkpoint, net), Stories("train"), Stories("validation")
    first = parallel.rank() == 0
    logged = saved = time.time()
    begun = logged - state.spent
    while (done := parallel.from_first((time.time() - begun) / (60 * minutes))) < 1:
        loss = state.update(data, cosine_rate(net.rate, done, state.step, warmup=200))
        state.spent = done * 60 * minutes
        if first and time.time() - logged > 120:
            logged = time.time()
            told = f"loss {loss:.4f}, {errors(state.average, held)}"
            print(f"{kind} {state.spent / 60:.1f} min, step {state.step}, {told}", flush=True)
        if first and time.time() - saved > 240:
            saved = time.time()
            state.save()
    if first:
        state.save()
        print(f"{kind} done: step {state.step}, {errors(state.average, held)}", flush=True)


def train(kind: str, minutes: float, workers: int, start: Path | None = None) -> None:
    """Trains a UNet of KINDS in `workers` processes; resumes. start: an exported folder, to begin with its weights."""
    parallel.run(_work, workers, kind, minutes, WORK / f"{kind}.pt", start)


def trained(kind: str) -> torch.nn.Module:
    """The moving average of the weights in a checkpoint of `train`."""
    net = KINDS[kind]()
    net.load_state_dict(torch.load(WORK / f"{kind}.pt")["average"])
    return net.eval()


def export(kind: str) -> None:
    """Writes the trained weights into data/models/KIND."""
    folder = MODEL_DIR.with_name(kind)
    trained(kind).save(folder)
    config = folder / "unet" / "config.json"
    values = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
    config.write_text(json.dumps(values, indent=2) + "\n")
