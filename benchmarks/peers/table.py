"""From measurements to tables and a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog import TASKS, ModelSpec
from limits import LONG_CONTEXT, SHORT_CONTEXT
from measure import Pair, Store


@dataclass(frozen=True, slots=True)
class Target:
    """A line of the table of our own figures.

    Attributes:
        figure: Its name among `limits.figures`.
        text: What it is.
        bound: How it should be, for readers.
    """

    figure: str
    text: str
    bound: str


TARGETS = (
    Target("decode 1", "decode 1, part of the bandwidth limit", "≥ 0.92"),
    Target("decode 1, beside", "decode 1, part of the bandwidth measured beside its steps", ""),
    Target("decode 1, AVX2", "decode 1 with AVX2 kernels, part of the bandwidth limit", "≥ 0.90"),
    Target("decode 1, AVX2, beside", "the same, part of the bandwidth measured beside its steps", ""),
    Target("prefill 512", "prefill 512, part of the arithmetic limit", "≥ 0.88"),
    Target("prefill 2048", "prefill 2048, part of the arithmetic limit", "≥ 0.88"),
    Target("decode 8", "decode 8, part of the limit that binds", ""),
    Target("decode 32", "decode 32, part of the limit that binds", ""),
    Target(
        "context",
        f"decode at {LONG_CONTEXT} after {SHORT_CONTEXT}: more time / more bytes, at the bandwidth beside",
        "≤ 1.10",
    ),
    Target("load", "load / reading the cached files once", "≤ 1.20"),
    Target("load, kept", "load / reading them into memory that is kept", ""),
    Target("memory", "peak memory / packed weights and KV", "≤ 1.10"),
    Target("first token", "first token after 16 / a decode step", "≤ 1.15"),
    Target("top_k", "sampling with top_k 50 of 152k / a decode step", "< 0.02"),
    Target("top_p", "sampling with top_p 0.9 of 152k, near flat / a decode step", "< 0.02"),
    Target("scheduler", "scheduler and step assembly at batch 64 / the step", "< 0.01"),
    Target("engine", "the same with choosing the 64 tokens, greedily / the step", ""),
    Target("threads, prefill", "prefill 512 with two threads / with one", "≥ 1.90"),
    Target("threads, decode", "decode 1 with two threads / with one, by that of the bandwidth", "≈ 1"),
)


def _median_rate(rows: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(row["tokens"] / row[key] for row in rows)


def _ratio(rows: Sequence[dict[str, Any]]) -> float:
    """Ours over theirs, each turn by itself: what the machine did to one it did to the other."""
    return statistics.median(row["theirs"] / row["ours"] for row in rows)


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "-"
    return f"{_median_rate(rows, 'theirs'):,.1f} / {_median_rate(rows, 'ours'):,.1f} = **{_ratio(rows):.2f}x**"


def _both(rows: Sequence[dict[str, Any]], key: str, form: str) -> str:
    """The figure of the peer, and ours."""
    cells = []
    for ours in (False, True):
        values = [row[key] for row in rows if (row["engine"] == "llm_boost") == ours]
        cells.append(format(statistics.median(values), form) if values else "-")
    return " / ".join(cells)


def _greedy(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "-"
    row = rows[0]
    text = f"{row['equal']} of {row['of']}"
    return text if row["margin"] is None else f"{text}, then by a margin of {row['margin']:.3f}"


def compared(store: Store, pairs: Sequence[Pair], specs: Mapping[str, ModelSpec]) -> str:
    """A table for each model: a peer a line, "theirs / ours = how many times as fast ours is" in tokens per second."""
    text = ""
    for model in dict.fromkeys(pair.model for pair in pairs):
        names = [task.name for task in TASKS if task.name not in specs[model].left_out]
        text += f"\n### {specs[model].title}\n\n"
        text += f"| peer | {' | '.join(names)} | turns | load s | peak GB | same greedy tokens |\n"
        text += "|---" * (len(names) + 5) + "|\n"
        for pair in (pair for pair in pairs if pair.model == model):
            times = store.of(pair, "time")
            by_task = [[row for row in times if row["task"] == name] for name in names]
            cells = [_cell(rows) for rows in by_task]
            cells.append(str(min((len(rows) for rows in by_task if rows), default=0)))
            cells.append(_both(store.of(pair, "load"), "seconds", ".1f"))
            cells.append(_both([row | {"gb": row["bytes"] / 1e9} for row in store.of(pair, "memory")], "gb", ".2f"))
            cells.append(_greedy(store.of(pair, "greedy")))
            text += f"| {pair.peer} | {' | '.join(cells)} |\n"
    return text


def _part(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"


def against_limits(figures: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each target, a column for each model."""
    text = f"\n| | target | {' | '.join(figures)} |\n" + "|---" * (len(figures) + 2) + "|\n"
    for target in TARGETS:
        values = [of_model[target.figure] for of_model in figures.values()]
        if not all(map(math.isnan, values)):
            cells = [
                "-" if math.isnan(value) else f"{value:.4f}" if value < 0.1 else f"{value:.2f}" for value in values
            ]
            text += f"| {target.text} | {target.bound} | {' | '.join(cells)} |\n"
    return text


def plot(store: Store, pairs: Sequence[Pair], specs: Mapping[str, ModelSpec], path: Path) -> None:
    """How many times as fast as each peer we are, a panel a model. Needs matplotlib."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(pair.model for pair in pairs))
    figure = Figure(figsize=(9, 3.2 * len(models)), layout="constrained")
    for axes, model in zip(figure.subplots(len(models), squeeze=False)[:, 0], models, strict=True):
        of_model = [pair for pair in pairs if pair.model == model]
        for number, pair in enumerate(of_model):
            times = store.of(pair, "time")
            rows = [[row for row in times if row["task"] == task.name] for task in TASKS]
            ratios = [_ratio(each) if each else 0 for each in rows]
            width = 0.8 / len(of_model)
            axes.bar([i + number * width for i in range(len(TASKS))], ratios, width, label=pair.peer)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks([i + 0.3 for i in range(len(TASKS))], [task.name for task in TASKS])
        axes.set(title=specs[model].title, ylabel="speed, ours / peer")
        axes.legend()
    figure.savefig(path)
