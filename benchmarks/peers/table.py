"""From measurements to a table and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catalog import TASKS
from measure import Pair, Store


def _median_rate(rows: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(row["tokens"] / row[key] for row in rows)


def _ratio(rows: Sequence[dict[str, Any]]) -> float:
    """Ours over theirs, each turn by itself: what the machine did to one it did to the other."""
    return statistics.median(row["theirs"] / row["ours"] for row in rows)


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "-"
    return f"{_median_rate(rows, 'theirs'):,.1f} / {_median_rate(rows, 'ours'):,.1f} = **{_ratio(rows):.2f}x**"


def _engine(rows: Sequence[dict[str, Any]], key: str, *, ours: bool) -> float:
    values = [row[key] for row in rows if (row["engine"] == "llm_boost") == ours]
    return statistics.median(values) if values else float("nan")


def markdown(store: Store, pairs: Sequence[Pair]) -> str:
    """A table for each model: a peer a line, "theirs / ours = how many times as fast ours is" in tokens per second."""
    text = ""
    for model in dict.fromkeys(pair.model for pair in pairs):
        text += f"\n### {model}\n\nTokens per second, peer / ours; medians of turns taken one after the other.\n\n"
        names = [task.name for task in TASKS]
        text += f"| peer | {' | '.join(names)} | load s | peak GB | same greedy tokens |\n"
        text += "|---" * (len(names) + 4) + "|\n"
        for pair in (pair for pair in pairs if pair.model == model):
            times = store.of(pair, "time")
            cells = [_cell([row for row in times if row["task"] == name]) for name in names]
            loads, memory = store.of(pair, "load"), store.of(pair, "memory")
            cells.append(f"{_engine(loads, 'seconds', ours=False):.1f} / {_engine(loads, 'seconds', ours=True):.1f}")
            cells.append(
                f"{_engine(memory, 'bytes', ours=False) / 1e9:.2f} / {_engine(memory, 'bytes', ours=True) / 1e9:.2f}"
            )
            greedy = store.of(pair, "greedy")
            cells.append(f"{greedy[0]['equal']} of {greedy[0]['of']}" if greedy else "-")
            text += f"| {pair.peer} | {' | '.join(cells)} |\n"
    return text


def plot(store: Store, pairs: Sequence[Pair], path: Path) -> None:
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
        axes.set(title=model, ylabel="speed, ours / peer")
        axes.legend()
    figure.savefig(path)
