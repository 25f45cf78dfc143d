"""Gaussian diffusion of a table's rows (as TabDDPM, Kotelnikov et al. 2023) on diffusers' schedulers.

A residual MLP predicts the velocity (Salimans & Ho 2022) of all columns' codes. At training a random part of a row's
columns is known and told clean, so that any columns can be held at given values when rows are drawn: no row is thrown
away.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import diffusers
import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from stlib import paths
from stlib.generation.early_exit import EarlyExit, fresh
from stlib.generation.models import ModelError
from stlib.generation.quantization import PRECISIONS, refuse
from stlib.generation.tables.columns import Columns
from stlib.generation.tables.job import TableJob, TableResult
from stlib.settings import FieldError

WIDTH, BLOCKS, WHEN = 192, 3, 64
BATCH, RATE, AVERAGED = 512, 2e-3, 0.998  # rows of an update, its peak rate, the weights' moving average
UPDATES = 5000
TOLD_NONE, TOLD_ONE = 0.4, 0.3  # of the rows are told no column at training, and one alone
FILES = "config.json", "model.safetensors"


class RowNet(nn.Module):
    """The velocity (n, width) of noisy codes; columns: the widths of the columns' codes."""

    dtype = torch.float32  # what it computes in, whatever its weights are kept in

    def __init__(self, columns: list[int], width: int = WIDTH, blocks: int = BLOCKS):
        super().__init__()
        code = sum(columns)
        self.of_column = torch.repeat_interleave(torch.arange(len(columns)), torch.tensor(columns))
        self.enter = nn.Linear(2 * code, width)  # what is told has inputs of its own
        self.when = nn.Sequential(nn.Linear(WHEN + len(columns), WHEN), nn.SiLU(), nn.Linear(WHEN, WHEN), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, code))

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """noisy (n, width), columns that are told clean; steps t (n,) or (1,); told (n or 1, columns): 1 if so."""
        held = told[:, self.of_column]
        hidden = self.enter(torch.cat([noisy * (1 - held), noisy * held], 1).to(self.dtype))
        angle = t[:, None] * torch.exp(torch.linspace(0, -7, WHEN // 2))
        when = self.when(torch.cat([angle.sin(), angle.cos(), told], 1).to(self.dtype))
        for block in self.blocks:
            hidden = block(hidden, when)
        return self.leave(hidden).to(noisy.dtype)


class Block(nn.Module):
    """A residual block that the step and what is told scale and shift (as Peebles & Xie 2023).

    At the first steps a row is noise, and only what is told says anything: inputs are weighed, not only added.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.change = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(WHEN, 3 * width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, hidden: torch.Tensor, when: torch.Tensor) -> torch.Tensor:
        """hidden (n, width); when (n or 1, WHEN)."""
        scale, shift, gate = self.change(when).chunk(3, dim=1)
        return hidden + (1 + gate) * self.body(self.norm(hidden) * (1 + scale) + shift)


def _told(n: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Which columns (n, columns) the rows of an update are told, 1 or 0: none, one, or a random part."""
    order = torch.rand(n, columns, generator=generator).argsort(1)
    how, part = torch.rand(2, n, 1, generator=generator)
    many = torch.where(how < TOLD_NONE + TOLD_ONE, 1, (part * (columns + 1)).long())
    return ((order < many) & (how >= TOLD_NONE)).float()


def scheduler():
    """Steps at equal distances, the last training step's signal zero (Lin et al. 2024)."""
    return diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False,
                                   rescale_betas_zero_snr=True, timestep_spacing="trailing")


class TableDiffusion:
    """A table's model. Made by `fit` or `from_pretrained`."""

    def __init__(self, columns: Columns, net: RowNet):
        self.columns, self.net, self.scheduler = columns, net.eval().requires_grad_(False), scheduler()
        self._nets = {"fp32": self.net}

    @classmethod
    def fit(cls, table: pd.DataFrame, updates: int = UPDATES, seed: int = 0, progress: bool = True) -> "TableDiffusion":
        """Trained on a table's rows, its columns numbers, text, booleans or categories, any of them missing somewhere.

        Raises FieldError, naming the column, for what it cannot draw: dates, free text.
        """
        columns, rng, generator = Columns.of(table), np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        if not (widths := [width for width in columns.widths if width]):
            raise FieldError("all columns are constant: give one that varies")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = RowNet(columns.widths)
        average, noise = copy.deepcopy(net), scheduler()
        optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-4, fused=True)
        weight = 1 / (torch.tensor(columns.widths)[net.of_column] * len(widths))
        bar = tqdm(range(updates), desc="training", disable=not progress, mininterval=1)
        for update in bar:
            if update % 500 == 0:  # ties get another place
                code = torch.from_numpy(columns.encode(table, rng))
            clean = code[torch.randint(len(code), (BATCH,), generator=generator)]
            told = _told(BATCH, len(columns.widths), generator)
            t = torch.randint(len(noise.alphas_cumprod), (2, BATCH), generator=generator).amax(0)  # most at high noise
            drawn = torch.randn(clean.shape, generator=generator)
            held = told[:, net.of_column] > 0
            noisy = torch.where(held, clean, noise.add_noise(clean, drawn, t))
            error = (net(noisy, t.float(), told) - noise.get_velocity(clean, drawn, t)).square() * weight
            loss = (error * ~held).sum(1).mean()
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, update / 100) * (0.02 + 0.49 * (1 + np.cos(np.pi * update / updates)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                kept = min(AVERAGED, update / (update + 10))
                torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - kept)
        return cls(columns, average)

    def sample(self, n: int, conditions: Mapping | None = None, **options) -> pd.DataFrame:
        """n rows with the table's dtypes. conditions: a value by column that all rows have. options: of TableJob."""
        return self.draw(TableJob(rows=n, conditions=dict(conditions or {}), **options)).table

    def check(self, job: TableJob) -> None:
        """Raise FieldError for conditions that the table's columns do not know, or a precision not at hand."""
        self.columns.check(job.conditions)
        refuse(job.precision, "cpu")

    @torch.inference_mode()
    def draw(self, job: TableJob, on_step: Callable[[int, int], None] = lambda done, total: None) -> TableResult:
        """Do a job. on_step(done, total): called after each step of each batch, rows times steps."""
        self.check(job)
        began, rng = time.monotonic(), np.random.default_rng(job.seed)
        code, told = self.columns.held(job.conditions, job.rows, rng)
        code, told = torch.from_numpy(code), torch.from_numpy(told)[None]
        noise = torch.randn(code.shape, generator=torch.Generator().manual_seed(job.seed))
        net = self._net(job.precision)
        held = told[0, net.of_column] > 0
        parts, steps_run, row_steps = [], 0, 0
        denoising = time.monotonic()
        for start in range(0, job.rows, job.batch):
            end = min(start + job.batch, job.rows)
            x, clean = noise[start:end], code[start:end]

            def stepped(done, start=start, end=end):
                on_step(start * job.steps + done * (end - start), job.rows * job.steps)

            x, steps = self._denoised(net, x, clean, held, told, job.steps, job.early_exit, stepped)
            parts.append(x)
            steps_run, row_steps = steps_run + steps, row_steps + steps * len(x)
        decoding = time.monotonic()
        table = self.columns.put(job.conditions, self.columns.decode(torch.cat(parts).numpy()))
        timings = {"preparing": denoising - began, "denoising": decoding - denoising,
                   "decoding": time.monotonic() - decoding}
        return TableResult(table, timings, steps_run, row_steps, job)

    def _denoised(self, net, x, clean, held, told, steps: int, rule: EarlyExit | None, on_step) -> tuple:
        """Codes (n, width) of noise x, and the steps that it took."""
        plan = fresh(self.scheduler, rule)
        plan.set_timesteps(steps)
        for done, t in enumerate(plan.timesteps, start=1):
            x = torch.where(held, clean, x)
            velocity = net(x, t[None].float(), told)
            x = plan.step(velocity[None], t, x[None]).prev_sample[0]  # the batch as one, for an early exit
            on_step(done)
            if rule and plan.watch.met():
                return plan.watch.x0[0], done
        return x, steps

    def _net(self, precision: str) -> nn.Module:
        if precision not in self._nets:
            scheme = PRECISIONS[precision]
            net = copy.deepcopy(self.net).to(scheme.dtype)
            net.dtype = scheme.dtype
            if scheme.quantize:
                scheme.quantize(net)
            self._nets[precision] = net
        return self._nets[precision]

    def save(self, folder) -> Path:
        """Write FILES into a new `folder`, all or nothing."""
        with paths.whole(Path(folder)) as partial:
            partial.mkdir()
            (partial / FILES[0]).write_text(json.dumps(self.columns.to_dict(), indent=1) + "\n", encoding="utf-8")
            save_file({name: value.contiguous() for name, value in self.net.state_dict().items()}, partial / FILES[1])
        return Path(folder)

    @classmethod
    def from_pretrained(cls, folder=paths.MODELS / "table") -> "TableDiffusion":
        """Read what `save` wrote; left out, the embedded one. Raises ModelError for a folder that holds none."""
        try:
            columns = Columns.from_dict(json.loads((Path(folder) / FILES[0]).read_text(encoding="utf-8")))
            net = RowNet(columns.widths)
            net.load_state_dict(load_file(Path(folder) / FILES[1]))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{folder} holds no table's model ({type(error).__name__}): name a folder made by "
                             "`python -m stlib table fit`") from error
        return cls(columns, net)
