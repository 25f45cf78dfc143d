"""Measured rows: each kept under a key, so that nothing measured is lost or measured twice."""

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from stlib import paths

# a change here makes kept rows stale
MEASURED_SOURCES = ("generation", "serving/workloads", "serving/replica.py", "experiment/measure.py")


class Store:
    """An append-only JSONL file of rows with a `key`; a row is on disk before `append` returns.

    A crash can tear the last line only: it was never acknowledged, so opening the store cuts it off.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = {row["key"]: row for row in self._read()}

    def _read(self) -> list[dict]:
        if not self.path.exists():
            return []
        whole = self.path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(self.path, end)
        return [json.loads(line) for line in whole[:end].splitlines()]

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


def row_key(row: dict, weights: str) -> str:
    """What makes a measurement reusable: its parameters, the models' weights and the code that was timed."""
    text = json.dumps([row, weights, source_hash()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_hash() -> str:
    """Hash of the sources whose change could change a time."""
    digest = hashlib.sha256()
    for part in MEASURED_SOURCES:
        place = paths.ROOT / "stlib" / part
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def provenance() -> dict:
    """Where and with what a measurement was made."""
    return {"commit": _git("rev-parse", "--short", "HEAD"), "dirty": bool(_git("status", "--porcelain", "stlib")),
            "profile": paths.profile(), "python": platform.python_version(), "machine": platform.machine(),
            "cpu": _cpu(), "cpus": os.cpu_count(),
            "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy", "ray")}}


def measure(plan: pd.DataFrame, run: Callable[[dict], dict], store: Store, weights: str, *,
            label: str = "jobs") -> pd.DataFrame:
    """Run each row of `plan` that the store lacks, in its order, and return all its rows.

    `run(row)` does the work of one row (a dict of plain values) and returns what it measured, times in seconds.
    Prints how many rows were kept and how many measured.
    """
    planned = json.loads(plan.to_json(orient="records"))
    keys = [row_key(row, weights) for row in planned]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the plan of {label} repeats a row: add a replicate number, so that each has its own key")
    missing = [(key, row) for key, row in zip(keys, planned, strict=True) if key not in store]
    print(f"{label}: {len(keys) - len(missing)} rows kept, {len(missing)} to measure")
    made = provenance() if missing else None
    for key, row in tqdm(missing, desc=label, unit="job", mininterval=2, disable=not missing):
        at_s = time.monotonic()
        store.append({"key": key, **row, **run(row), "at_s": at_s, "provenance": made})
    return store.rows(keys)


def export(rows: pd.DataFrame, path: str | Path) -> Path:
    """Write measured rows as Parquet (or CSV, by the suffix), and where they were made as JSON beside it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {json.dumps(one, sort_keys=True): one for one in rows["provenance"]}
    table = rows.drop(columns="provenance")
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    path.with_suffix(".provenance.json").write_text(json.dumps(list(made.values()), indent=1) + "\n")
    return path


def reference(name: str) -> pd.DataFrame:
    """The rows that the committed reference run exported under `name`. Raises FileNotFoundError with the remedy."""
    path = paths.REFERENCE / f"{name}.parquet"
    if not path.exists():
        raise FileNotFoundError(f"no reference {path.name}: check the clone, or make it with PROFILE=full")
    return pd.read_parquet(path)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # an unpacked archive has no history
    return done.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
