"""Training of the judge that reads pictures: hero, object, place, drawing style and look."""

import json
import time

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from stlib.generation.quality import JUDGE, JudgeNet
from training.concepts import HEROES, LOOKS, STYLES, WORK
from training.scenes import BACKDROPS, RIGHT

NAMES = {"hero": [*HEROES, ""], "object": [*RIGHT, ""], "place": BACKDROPS, "style": STYLES, "look": LOOKS}
STEPS, BATCH, PEAK_RATE = 2500, 128, 2e-3
NOISE = 0.5  # standard deviation at most, so that it reads soft pictures too
REFERENCE = ("validation", "held_out")  # sets whose features are kept


def _set(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents of a set's panels, story by story, and their classes [n, 5]."""
    latents, panels, scenes = (np.load(WORK / f"story_{kind}_{name}.npy") for kind in ("latents", "panels", "scenes"))
    classes, last = scenes.reshape(-1, len(NAMES)).astype(int), [len(names) - 1 for names in NAMES.values()]
    return torch.from_numpy(latents[panels.ravel()]), torch.from_numpy(np.where(classes < 0, last, classes))


def train() -> None:
    """Trains it for STEPS updates and writes data/models/judge, with the features of real panels never trained."""
    torch.manual_seed(3)
    net = JudgeNet([len(names) for names in NAMES.values()])
    optimiser = torch.optim.AdamW(net.parameters(), PEAK_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS, PEAK_RATE / 30)
    latents, classes = _set("train")
    began = time.time()
    for step in range(STEPS):
        chosen = torch.randint(len(latents), (BATCH,))
        clean = latents[chosen].float()
        noisy = clean + NOISE * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(clean)
        loss = sum(cross_entropy(found, classes[chosen, head]) for head, found in enumerate(net.logits(net(noisy))))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 250 == 0:
            print(f"judge step {step}, loss {loss:.4f}, {time.time() - began:.0f} s", flush=True)
    _export(net.eval())


@torch.no_grad()
def _export(net: JudgeNet) -> None:
    JUDGE.mkdir(parents=True, exist_ok=True)
    features = {}
    for name in REFERENCE:
        latents, classes = _set(name)
        features[name] = net(latents.float())
        found = net.logits(features[name])
        right = {head: round((one.argmax(1) == classes[:, i]).float().mean().item(), 4)
                 for i, (head, one) in enumerate(zip(NAMES, found, strict=True))}
        print(f"judge, {len(latents)} panels of {name}: right {right}", flush=True)
    save_file({name: one.half().contiguous() for name, one in net.state_dict().items()}, JUDGE / "judge.safetensors")
    save_file({name: one.half() for name, one in features.items()}, JUDGE / "real.safetensors")
    (JUDGE / "config.json").write_text(json.dumps(NAMES, indent=1) + "\n")
