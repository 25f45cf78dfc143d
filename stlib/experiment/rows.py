"""Measured rows: each kept under a key, so that nothing measured is lost or measured twice."""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from stlib import paths
from stlib.experiment.sources import IN_REPLICA, code_hash
from stlib.serving.rules import options_of

WHEN = ("run", "block", "process")  # columns that say when a row is measured, not what
BOOTS_APART_S = 1e9
SOURCES = ("stlib", "notebooks", "data", ":!data/reference")  # what a run is made from; its results are not


class Store:
    """An append-only JSONL file of rows with a `key`; a row is on disk before `append` returns.

    A crash can tear the last line only: it was never acknowledged, so opening the store cuts it off.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.read_bytes() if self.path.exists() else b""
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(self.path, end)
        self._rows = {row["key"]: row for row in map(json.loads, whole[:end].splitlines())}

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def append(self, row: dict) -> None:
        """Add one row and wait until it is on disk; a key that is there already raises ValueError."""
        if row["key"] in self._rows:
            raise ValueError(f"{self.path.name} has a row with key {row['key']} already: keys are unique")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._rows[row["key"]] = row

    def rows(self, keys: Iterable[str] | None = None) -> pd.DataFrame:
        """The rows as a table, all of them or those of `keys` in their order."""
        return pd.DataFrame(list(self._rows.values()) if keys is None else [self._rows[key] for key in keys])


def key_of(*content) -> str:
    """A key (hex) of plain values, arrays and dataclasses: the same for the same content, in dicts in any order."""
    def plain(one):
        return one.tolist() if hasattr(one, "tolist") else vars(one)

    text = json.dumps(content, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def row_seeds(plan: pd.DataFrame) -> np.ndarray:
    """A number below 2**64 for each row, (n,), that follows from what the row asks for alone.

    That is its columns but WHEN and empty values. What is drawn from it (a story, whether the row is chosen) stays
    when other rows, levels or columns join the plan.
    """
    return np.array([int(key_of(_asked(row)), 16) for row in _records(plan)], np.uint64)


def provenance() -> dict:
    """Where and with what a measurement was made."""
    return {"commit": _git("rev-parse", "--short", "HEAD"),
            "dirty": bool(_git("status", "--porcelain", "--", *SOURCES)), "profile": paths.profile(),
            "python": platform.python_version(), "machine": platform.machine(), "cpu": _cpu(), "cpus": os.cpu_count(),
            "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy", "ray")}}


def measure(plan: pd.DataFrame, run: Callable[[dict], dict], store: Store, weights: str | Callable[[dict], str], *,
            code: Iterable[str] = IN_REPLICA, menu: dict | None = None, label: str = "jobs",
            seconds: float = math.inf) -> pd.DataFrame:
    """Run each row of `plan` that the store lacks, in its order, and return all its rows, `at_s` by `elapsed_s`.

    `run(row)` does the work of one row (a dict of plain values) and returns what it measured, times in seconds. A row
    is kept while all these are the same: what it asks for (its columns but WHEN and empty values, its method as what
    the `menu` says it stands for), the models' `weights` (their hash, or one for each row) and the `code` it runs
    (files of `code_hash`, with the row's method).
    seconds: after so many no further row is begun. Prints how many rows were kept and how many are to be measured.
    Raises ValueError for a plan that repeats a row.
    """
    planned, code = _records(plan), tuple(code)
    asked = [_asked(row) | options_of(row.get("method"), menu) for row in planned]
    of_method = {method: code_hash(*code, method=method) for method in {one.get("method") for one in asked}}
    keys = [key_of(one, weights if isinstance(weights, str) else weights(one), of_method[one.get("method")])
            for one in asked]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the plan of {label} repeats a row: add a replicate number ({', '.join(WHEN)} are not read)")
    missing = [(key, row) for key, row in zip(keys, planned, strict=True) if key not in store]
    print(f"{label}: {len(keys) - len(missing)} rows kept, {len(missing)} to measure")
    made, end = {"boot": _boot(), "provenance": provenance()} if missing else None, time.monotonic() + seconds
    for key, row in tqdm(missing, desc=label, unit="job", mininterval=2, disable=not missing):
        if (at_s := time.monotonic()) > end:
            break
        began = {"at_s": at_s, "epoch_s": time.time()}
        store.append({"key": key, **row, **run(row), **began, **made})
    done = [key for key in keys if key in store]
    return store.rows(done).assign(at_s=elapsed_s) if done else pd.DataFrame(columns=[*plan, "at_s"])


def elapsed_s(rows: pd.DataFrame) -> pd.Series:
    """`at_s` on one axis: as it is within a boot of a machine, whose clock it is; of different boots far apart.

    Rows without `boot`, of before it was kept, count as of one.
    """
    return rows["at_s"] + BOOTS_APART_S * pd.factorize(rows["boot"])[0] if "boot" in rows else rows["at_s"]


def export(rows: pd.DataFrame, path: str | Path) -> Path:
    """Write measured rows as Parquet, each with its `provenance`."""
    with paths.whole(Path(path)) as file:
        storable(rows).to_parquet(file, index=False)
    return Path(path)


def storable(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as Parquet takes them: of columns that hold numbers and texts, as sizes do (64, "96x64"), texts."""
    kinds = {name: set(map(type, rows[name])) for name in rows.select_dtypes("object")}
    return rows.astype({name: str for name, found in kinds.items() if found == {int, str}})


def reference(name: str) -> pd.DataFrame:
    """The rows that the committed reference run exported under `name`. Raises FileNotFoundError with the remedy."""
    path = paths.REFERENCE / f"{name}.parquet"
    if not path.exists():
        raise FileNotFoundError(f"no reference {path.name}: check the clone, or make it with PROFILE=full")
    return pd.read_parquet(path).assign(at_s=elapsed_s)


def _records(plan: pd.DataFrame) -> list[dict]:
    return json.loads(plan.to_json(orient="records"))


def _asked(row: dict) -> dict:
    """What a row asks for; 2.0 is 2, since a column becomes one of floats where other rows have no value."""
    return {name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in row.items() if name not in WHEN and value is not None}


def _boot() -> str:
    """An id of this start of this machine; of this process where the system tells none."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else uuid.uuid4().hex


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # an unpacked archive has no history
    return done.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return named[1] if named else platform.processor()
