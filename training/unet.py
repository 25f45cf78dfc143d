"""Training of the UNet on encoded scenes and captions, for a budget of wall-clock time."""

import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from training import parallel
from training.concepts import WORK
from training.diffusion import new_unet, noised, sample
from training.sheets import save_sheet
from training.vae import cosine_rate, update_average

BATCH = 8  # a process
PEAK_RATE = 1e-3
LONE_RATE = 5e-4  # of the later minutes on scenes with more lone subjects
EMPTY_SHARE = 0.1  # of the captions are dropped, for guidance
SUBJECT_WEIGHT = 2.0  # of a latent cell that a subject covers, against 1 for the place
EMA_DECAY = 0.998
N_PROBES = 12


class Scenes:
    """A set's latents with, for every scene, its captions' states; all caption tables called NAME* are used."""

    def __init__(self, name: str):
        self.latents = torch.from_numpy(np.load(WORK / f"latents_{name}.npy"))
        share = torch.from_numpy(np.load(WORK / f"masks_{name}.npy")).float() / 255
        weight = 1 + (SUBJECT_WEIGHT - 1) * share
        self.weights = (weight / weight.mean()).half()
        self.tables, self.texts = [], []
        for path in sorted(WORK.glob(f"index_{name}*.npy")):
            table = path.stem.removeprefix("index_")
            states = torch.from_numpy(np.load(WORK / f"states_{table}.npy"))
            self.tables.append((torch.from_numpy(np.load(path)), states))
            self.texts.append(json.loads((WORK / f"captions_{table}.json").read_text()))
        self.empty = self.tables[0][1][:1].float()

    def __len__(self) -> int:
        return len(self.latents)

    def states(self, scenes: torch.Tensor, table: int = 0) -> torch.Tensor:
        """Caption states [n, 20, 384] of the scenes with these numbers, from one of the tables."""
        index, states = self.tables[table]
        return states[index[scenes]].float()

    def batch(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Random latents, weights [n, 1, 16, 16] and caption states, a part of the captions empty."""
        scenes = torch.randint(len(self), (n,), generator=generator)
        table = int(torch.randint(len(self.tables), (1,), generator=generator))
        states = self.states(scenes, table)
        states[torch.rand(n, generator=generator) < EMPTY_SHARE] = self.empty
        return self.latents[scenes].float(), self.weights[scenes].float().unsqueeze(1), states


class Validation:
    """The error of the velocity on fixed noise: mean and by quarter of t, from low noise to high."""

    def __init__(self, name: str, n: int = 96):
        data = Scenes(name)
        self.inputs = noised(data.latents[:n].float(), torch.Generator().manual_seed(9))
        self.states = data.states(torch.arange(n))

    @torch.no_grad()
    def __call__(self, unet) -> tuple[float, list[float]]:
        noisy, t, target = self.inputs
        error = (unet(noisy, t, self.states).sample - target).square().mean((1, 2, 3))
        return round(error.mean().item(), 4), [round(error[part].mean().item(), 3) for part in t.argsort().chunk(4)]


class Training:
    """The UNet, its moving average, the optimiser and the time spent; saved and resumed as one file."""

    def __init__(self, checkpoint: Path, unet: torch.nn.Module | None = None):
        torch.manual_seed(1)
        self.checkpoint = checkpoint
        self.unet = new_unet() if unet is None else unet
        self.average = copy.deepcopy(self.unet).eval().requires_grad_(False)
        groups = [
            {"params": [p for p in self.unet.parameters() if p.ndim >= 2], "weight_decay": 0.01},
            {"params": [p for p in self.unet.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
        self.step, self.spent = 0, 0.0
        if checkpoint.exists():
            self._resume()
        self.generator = torch.Generator().manual_seed(1 + self.step + 1_000_000 * parallel.rank())

    def _resume(self) -> None:
        state = torch.load(self.checkpoint)
        for name in ("unet", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.spent = state["step"], state["spent"]

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        state = {name: getattr(self, name).state_dict() for name in ("unet", "average", "optimizer")}
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state | {"step": self.step, "spent": self.spent}, temporary)
        temporary.rename(self.checkpoint)

    def update(self, data: Scenes, rate: float) -> float:
        """One optimiser step; returns the weighted loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(data)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(list(self.unet.parameters()))
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        update_average(self.average, self.unet, self.step, EMA_DECAY)
        return loss.item()

    def loss(self, data: Scenes) -> torch.Tensor:
        """Of a random batch: the weighted error of the velocity."""
        x0, weights, states = data.batch(BATCH, self.generator)
        noisy, t, target = noised(x0, self.generator)
        return (weights * (self.unet(noisy, t, states).sample - target).square()).mean()


def trained_unet(checkpoint: Path) -> UNet2DConditionModel:
    """The moving average of the weights in a checkpoint, fp32."""
    unet = new_unet()
    unet.load_state_dict(torch.load(checkpoint)["average"])
    return unet.eval()


def probe(unet, name: str) -> None:
    """A contact sheet of generated pictures, to look at while training."""
    data, vae = Scenes("held_out"), AutoencoderKL.from_pretrained(WORK / "vae").eval()
    latents = sample(unet, data.states(torch.arange(N_PROBES)), data.empty, list(range(N_PROBES)))
    with torch.no_grad():
        save_sheet(vae.decode(latents).sample, WORK / "probes" / f"{name}.png", columns=6)


class Log:
    """What the first process prints and saves while it trains."""

    def __init__(self, state: Training):
        self.state, self.running = state, None
        self.checks = {"validation": Validation("validation"), "held-out pairs": Validation("held_out")}
        self.logged = self.saved = time.time()
        millions = sum(p.numel() for p in state.unet.parameters()) / 1e6
        print(f"unet: {millions:.2f} M parameters, from step {state.step}, {state.spent / 60:.1f} min", flush=True)

    def __call__(self, loss: float) -> None:
        """Prints the errors every two minutes; saves and draws probe pictures every five."""
        state, now = self.state, time.time()
        self.running = loss if self.running is None else 0.99 * self.running + 0.01 * loss
        if now - self.logged > 120:
            self.logged = now
            self.errors()
        if now - self.saved > 300:
            self.saved = now
            state.save()
            probe(state.average, f"{state.checkpoint.stem}_{state.step:05d}")

    def errors(self) -> None:
        """Prints the errors on validation scenes and on held-out pairs."""
        errors = {name: check(self.state.average) for name, check in self.checks.items()}
        minutes = self.state.spent / 60
        print(f"unet {minutes:5.1f} min, step {self.state.step}, train {self.running:.4f}, {errors}", flush=True)


def _work(minutes: float, checkpoint: Path, name: str, peak_rate: float) -> None:
    state, data = Training(checkpoint), Scenes(name)
    log = Log(state) if parallel.rank() == 0 else None
    begun = time.time() - state.spent
    while (done := parallel.from_first((time.time() - begun) / (60 * minutes))) < 1:
        loss = state.update(data, cosine_rate(peak_rate, done, state.step, warmup=200))
        state.spent = done * 60 * minutes
        if log:
            log(loss)
    if log and log.running is not None:
        log.errors()
        state.save()
        probe(state.average, f"{checkpoint.stem}_final")


def train(minutes: float, checkpoint: Path, workers: int, name: str = "train", peak_rate: float = PEAK_RATE) -> None:
    """Trains on the set `name` for `minutes` of wall-clock time in `workers` processes; resumes from `checkpoint`."""
    parallel.run(_work, workers, minutes, checkpoint, name, peak_rate)


def train_on(minutes: float, start: Path, checkpoint: Path, workers: int) -> None:
    """Trains a finished net on for `minutes` more, on scenes with more lone subjects, from `start` to `checkpoint`."""
    if not checkpoint.exists():
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(torch.load(start) | {"spent": 0.0}, temporary)
        temporary.rename(checkpoint)
    train(minutes, checkpoint, workers, "lone", LONE_RATE)
