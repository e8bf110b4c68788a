"""`stepaudio plan`: the tables a person reads, or one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from stepaudio_jax.parallel.chips import GIB, parse_topology
from stepaudio_jax.plan.offers import Offer, compare, read_prices
from stepaudio_jax.plan.plan import SPARE, Plan, PlanError, plan_config
from stepaudio_jax.plan.search import Found, fit

T = TypeVar("T")


def define(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="a config file; override with --config.name=value")
    parser.add_argument("--topology", default=None, help="v5p:4x4x4, v6e-256, cpu; by default the one the config names")
    parser.add_argument("--slices", type=int, default=1, help="slices of that topology, over the data-centre network")
    parser.add_argument("--program", default=None, help="only this one of the config's programs")
    parser.add_argument("--fit", action="store_true", help="search mesh, microbatches and remat for what fits best")
    parser.add_argument("--tries", type=int, default=8, help="most candidates that --fit compiles (default 8)")
    parser.add_argument("--compare", nargs="+", metavar="TOPOLOGY", help="topologies side by side")
    parser.add_argument("--tokens", type=float, default=5e9, help="of the run that --compare prices (default 5e9)")
    parser.add_argument("--price", action="append", default=[], metavar="CHIP=DOLLARS", help="per chip-hour")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(config_path: str, overrides: Sequence[str], args: argparse.Namespace) -> int:
    """Returns 0, or 1 where a program does not fit. At ctrl-C the process ends, with 130."""
    with open(os.dup(2), "w") as terminal:  # a place of our own beside stderr, which `quiet` takes from the compiler
        errors = Console(file=terminal)
        try:
            return _run(config_path, overrides, args, errors)
        except KeyboardInterrupt:
            errors.print("stepaudio plan: interrupted")
            os._exit(130)  # without waiting for the compiler


def _run(config_path: str, overrides: Sequence[str], args: argparse.Namespace, errors: Console) -> int:
    from stepaudio_jax.training import read_config

    console = Console(highlight=False)
    prices = read_prices(args.price)
    config = read_config(config_path, overrides)
    name = args.topology or config.get("topology", "cpu")

    if args.compare:
        topologies = [parse_topology(text, args.slices) for text in args.compare]
        with errors.status(f"compiling for {', '.join(map(str, topologies))}"):
            offers = interruptible(lambda: compare(config, topologies, args.tokens, prices))
        if args.json:
            print(json.dumps([{"plan": o.plan.to_json(), "hours": o.hours, "chip_hours": o.chip_hours,
                               "dollars": o.dollars} for o in offers]))  # fmt: skip
        else:
            console.print(comparison(offers, args.tokens))
        return 0 if any(offer.dollars is not None for offer in offers) else 1

    topology = parse_topology(name, args.slices)
    if args.fit:
        if topology.chip is None:
            raise PlanError("--fit: a CPU has no limit to fit into; give a TPU topology")
        with errors.status("searching") as status:
            found = interruptible(
                lambda: fit(
                    config, topology, tries=args.tries, progress=lambda text: status.update(f"compiling {text}")
                )
            )
        if args.json:
            print(json.dumps({"settings": found.settings, "plans": [p.to_json() for p in found.best or []],
                              "tried": [[label, p.to_json()] for label, p in found.tried]}))  # fmt: skip
        else:
            console.print(search(found))
            for plan in found.best or ():
                console.print(report(plan))
        return 0 if found.best else 1

    with errors.status(f"compiling for {topology}"):
        plans = interruptible(lambda: plan_config(config, topology, only=args.program))
    if args.json:
        print(json.dumps({"plans": [plan.to_json() for plan in plans]}))
    else:
        for plan in plans:
            console.print(report(plan))
    return 1 if any(plan.fits is False for plan in plans) else 0


def interruptible(work: Callable[[], T]) -> T:
    """What `work()` gives, or KeyboardInterrupt at once while it goes on.

    The compiler heeds no signal for minutes. So it works in a thread beside the one that Python tells of signals.
    """
    result: Future[T] = Future()

    def run():
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result()


def gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:,.2f} MiB"


def verdict(plan: Plan) -> str:
    if plan.capacity is None or plan.fits is None:
        return "no limit known for a CPU"
    free = plan.capacity - plan.peak
    if plan.fits:
        return f"fits, {free / plan.capacity:.0%} to spare"
    if free < 0:
        return f"does NOT fit: {gib(-free)} too much"
    return f"too close: {free / plan.capacity:.1%} to spare, less than {SPARE:.0%}"


def report(plan: Plan) -> Table:
    """Everything about one plan."""
    axes = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "one device"
    table = Table(title=f"{plan.program}: {plan.about}\n{plan.topology}, {axes}", title_justify="left", min_width=64)
    table.add_column("per device" if plan.capacity else "on this CPU")
    table.add_column("", justify="right")
    for label, size in plan.groups.items():
        if size:
            table.add_row(label, gib(size))
    if plan.activations:
        table.add_row("activations kept for the backward pass", gib(plan.activations))
    table.add_row("temporaries", gib(plan.temporaries))
    table.add_row("peak", gib(plan.peak), style="bold")
    if plan.capacity:
        table.add_row("of", gib(plan.capacity))
        table.add_row("", verdict(plan), style="green" if plan.fits else "red")
    table.add_section()
    if plan.model_flops:
        table.add_row("model FLOPs (all devices)", f"{plan.model_flops / 1e12:,.4g} T")
    if plan.compiled_flops:
        table.add_row("compiled FLOPs (all devices)", f"{plan.compiled_flops / 1e12:,.4g} T")
        table.add_row("recompute ratio", f"{plan.recompute:.3f}")
    for kind, moved in plan.collectives.items():
        table.add_row(kind, f"{moved / 1e9:,.3g} GB")
    if plan.in_loops:
        table.add_row("collectives within loops", "\n".join(plan.in_loops))
    if plan.floors:
        table.add_section()
        for resource, seconds in plan.floors.items():
            binding = " <- binds" if resource == plan.binds else ""
            table.add_row(f"floor of the step, {resource}", f"{seconds * 1e3:,.4g} ms{binding}")
        table.add_row("tokens/s/chip at that floor (no measurement)", f"{plan.tokens_per_second_per_chip:,.4g}")
        table.add_row("model FLOPs utilisation at that floor", f"{plan.utilisation:.1%}")
    table.add_section()
    table.add_row("compile time", f"{plan.compile_seconds:.0f} s")
    return table


def search(found: Found) -> Table:
    table = Table(title="tried, in order", title_justify="left")
    for column in ("settings", "peak", "", "tokens/s/chip at the floor"):
        table.add_column(column)
    for label, plan in found.tried:
        rate = f"{plan.tokens_per_second_per_chip:,.4g}" if plan.floors else ""
        table.add_row(label, gib(plan.peak), verdict(plan), rate)
    return table


def comparison(offers: Sequence[Offer], tokens: float) -> Table:
    title = f"{tokens:.3g} tokens at the floor: a lower bound on hours and dollars, not a measurement"
    table = Table(title=title, title_justify="left")
    for column in ("topology", "peak", "", "binds", "tokens/s/chip", "hours", "chip-hours", "US$"):
        table.add_column(column, justify="right" if column in ("hours", "chip-hours", "US$") else "left")
    for offer in offers:
        plan, rate = offer.plan, offer.plan.tokens_per_second_per_chip
        cells = [plan.topology, gib(plan.peak), verdict(plan), plan.binds or "", f"{rate:,.4g}" if rate else ""]
        costs = [f"{x:,.4g}" if x is not None else "-" for x in (offer.hours, offer.chip_hours, offer.dollars)]
        table.add_row(*cells, *costs)
    return table
