"""Refusals shared by the queueing modules: every message gives the value, the allowed range and the remedy."""

import math


def positive(**values: float) -> None:
    """Raise ValueError unless each named value is a finite number above zero."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} = {value} must be a finite number above 0; check its unit and source")


def nonnegative(**values: float) -> None:
    """Raise ValueError unless each named value is a finite number of at least zero."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} = {value} must be a finite number of at least 0; check its unit and source")


def whole(least: int = 1, **values: int) -> None:
    """Raise ValueError unless each named value is a whole number of at least `least`."""
    for name, value in values.items():
        if not (math.isfinite(value) and value == int(value) and value >= least):
            raise ValueError(f"{name} = {value} must be a whole number of at least {least}; round it first")


def stable(rho: float) -> None:
    """Raise ValueError unless the utilisation `rho` leaves a steady state."""
    if not 0 <= rho < 1:
        raise ValueError(
            f"rho = {rho:.6g} must be below 1 for a steady state; lower the arrival rate, shorten the service, "
            "add servers, or simulate a finite run"
        )
