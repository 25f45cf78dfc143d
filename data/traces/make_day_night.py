"""Makes day_night.csv, one synthetic day of a small picture service: `python data/traces/make_day_night.py`.

Sessions begin as a Poisson process whose rate follows the hour of the day; a session asks for one or more pictures in
a row, each with the steps, image size and panels its user mostly keeps.
"""

from pathlib import Path

import numpy as np
import pandas as pd

SEED = 20260302
DAY_S = 86_400
SESSIONS = 800  # expected in the day
SWING = 0.8  # the rate goes from 1 - SWING at 4 h to 1 + SWING at 16 h, in means
JOBS_A_SESSION = 2.5  # geometric
PAUSE_S = 60  # mean between the jobs of a session, exponential
CHANGE = 0.2  # probability that a job's setting is chosen anew within a session
CHOICES = {"steps": ((8, 12, 20, 30), (0.2, 0.4, 0.3, 0.1)), "image_size": ((96, 128, 160), (0.2, 0.6, 0.2)),
           "n_panels": ((1, 2, 3, 4), (0.4, 0.2, 0.2, 0.2))}


def session_starts(rng: np.random.Generator) -> np.ndarray:
    """Thinning (Lewis and Shedler, 1979): candidates at the highest rate, each kept with the rate's share of it."""
    candidates = rng.uniform(0, DAY_S, rng.poisson(SESSIONS * (1 + SWING)))
    rate = 1 - SWING * np.cos(2 * np.pi * (candidates / DAY_S - 4 / 24))
    return candidates[rng.random(len(candidates)) < rate / (1 + SWING)]


def session(start_s: float, rng: np.random.Generator) -> pd.DataFrame:
    n = rng.geometric(1 / JOBS_A_SESSION)
    jobs = {"arrival_s": start_s + np.append(0, rng.exponential(PAUSE_S, n - 1).cumsum())}
    for name, (values, shares) in CHOICES.items():
        drawn, anew = rng.choice(values, n, p=shares), rng.random(n) < CHANGE
        anew[0] = True
        jobs[name] = drawn[np.maximum.accumulate(np.where(anew, np.arange(n), 0))]
    return pd.DataFrame(jobs)


def day() -> pd.DataFrame:
    rng = np.random.default_rng(SEED)
    jobs = pd.concat([session(start, rng) for start in session_starts(rng)])
    jobs = jobs[jobs.arrival_s < DAY_S].sort_values("arrival_s", kind="stable")
    stamps = pd.Timestamp("2026-03-02", tz="UTC") + pd.to_timedelta(jobs.arrival_s.round(3), unit="s")
    jobs.insert(0, "timestamp", stamps.dt.strftime("%Y-%m-%dT%H:%M:%S.%f").str[:-3] + "Z")
    return jobs.drop(columns="arrival_s")


if __name__ == "__main__":
    day().to_csv(Path(__file__).with_name("day_night.csv"), index=False, lineterminator="\n")
