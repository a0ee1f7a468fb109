"""Draws what `llm-boost bench` measured; needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from llm_boost.errors import ConfigError

if TYPE_CHECKING:
    from llm_boost.cli.bench_model import Measurement


def plot(path: Path, title: str, labels: Sequence[str], measurements: Sequence[Measurement]) -> None:
    """Writes a bar for each measurement, its share of the machine's limit, to an image file.

    Raises:
        ConfigError: matplotlib is not installed, or it cannot write such a file.
    """
    try:
        figures = import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise ConfigError("--plot needs matplotlib; install it with: pip install llm_boost[plot]") from error
    figure = figures.Figure(figsize=(8, 0.6 * len(labels) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(labels, [m.fraction_of_limit or 0 for m in measurements])
    axes.bar_label(bars, [f"{_median(m):,.1f} tok/s" for m in measurements], padding=3)
    axes.set(xlim=(0, 1.25), xlabel="fraction of the machine's limit", title=title)
    axes.invert_yaxis()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the plot cannot be written: {error}") from error


def _median(measurement: Measurement) -> float:
    values = sorted(measurement.tokens_per_second)
    return values[len(values) // 2]
