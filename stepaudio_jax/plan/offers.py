"""Topologies side by side: chip-hours and dollars for so many tokens, at the floor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.parallel.chips import CHIPS, Topology
from stepaudio_jax.plan.plan import Plan, PlanError, plan_config


@dataclasses.dataclass(frozen=True)
class Offer:
    """One topology's plan and what so many tokens cost on it, at least; None where it does not fit."""

    plan: Plan
    hours: float | None
    chip_hours: float | None
    dollars: float | None


def read_prices(overrides: Sequence[str]) -> dict[str, float]:
    """US dollars per chip-hour: the table's list prices, with `chip=dollars` in their place.

    Raises:
      PlanError: an unknown chip, or a price that is no number.
    """
    prices = {name: chip.price for name, chip in CHIPS.items() if chip.price is not None}
    for override in overrides:
        name, _, price = override.partition("=")
        if name not in CHIPS:
            raise PlanError(f"--price {override}: expected one of {', '.join(CHIPS)}, found {name!r}")
        try:
            prices[name] = float(price)
        except ValueError:
            prices[name] = math.nan
        if not 0 <= prices[name] < math.inf:
            raise PlanError(f"--price {override}: expected {name}=DOLLARS, found {price!r}")
    return prices


def compare(config: Any, topologies: Sequence[Topology], tokens: float, prices: Mapping[str, float]) -> list[Offer]:
    """The program that moves the most tokens, on each topology, the cheapest first."""
    offers = []
    for topology in topologies:
        plan = max(plan_config(config, topology), key=lambda plan: plan.model_flops)
        rate = plan.tokens_per_second_per_chip if plan.fits else None
        if not rate or topology.chip is None:
            offers.append(Offer(plan, None, None, None))
            continue
        chip_hours = tokens / rate / 3600
        offers.append(Offer(plan, chip_hours / topology.chips, chip_hours, chip_hours * prices[topology.chip.name]))
    return sorted(offers, key=lambda offer: math.inf if offer.dollars is None else offer.dollars)
