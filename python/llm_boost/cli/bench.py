"""``llm-boost bench``: how fast a model runs here, and how close to the machine's limits."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from llm_boost import __version__
from llm_boost.cli import bench_model
from llm_boost.cli.bench_model import Measurement
from llm_boost.cli.bench_plot import plot
from llm_boost.cli.options import add_loading_options, load_model
from llm_boost.errors import ConfigError

SUMMARY = "measure how fast a model runs, as fractions of the machine's limits"

_DEFAULT_REPEAT = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model directory, or the name of a pulled model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (needs matplotlib, the extra 'plot')")
    parser.add_argument(
        "--repeat", type=int, default=_DEFAULT_REPEAT, help="measured repetitions of each workload (default: 3)"
    )
    add_loading_options(parser)


def main(arguments: argparse.Namespace) -> int:
    """Loads the model, computes the usual workloads, prints a line for each."""
    if arguments.repeat < 1:
        raise ConfigError(f"--repeat is {arguments.repeat}, expected at least 1")
    started = time.perf_counter()
    model = load_model(arguments)
    load_seconds = time.perf_counter() - started
    info = model.info()
    limits = bench_model.find_limits(info.num_threads)
    print(f"{arguments.model} on {info.backend}, loaded in {load_seconds:.2f} s")
    measurements: list[Measurement] = []
    for workload in bench_model.fitting(bench_model.WORKLOADS, model):
        measurements.append(bench_model.measure(model, workload, arguments.repeat, limits))
        print(_line(measurements[-1]), flush=True)
    peak = bench_model.peak_memory()
    print(f"weights {info.weight_bytes / 1e9:.3f} GB, peak memory {peak / 1e9:.3f} GB")
    if arguments.json is not None:
        report = {
            "version": __version__,
            "command": " ".join(sys.argv),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": arguments.model,
            "info": asdict(info),
            "load_seconds": load_seconds,
            "peak_memory_bytes": peak,
            "logits_hash": bench_model.logits_hash(model),
            "limits": asdict(limits) if limits is not None else None,
            "results": [asdict(m) | {"kind": m.workload.kind} for m in measurements],
        }
        _write(arguments.json, json.dumps(report, indent=2) + "\n")
    if arguments.plot is not None:
        plot(arguments.plot, f"{arguments.model}, {info.backend}", [_label(m) for m in measurements], measurements)
    return 0


def _label(measurement: Measurement) -> str:
    workload = measurement.workload
    tokens = workload.prompt if workload.kind == "prefill" else workload.batch
    return f"{workload.kind} {tokens}"


def _line(measurement: Measurement) -> str:
    rates = sorted(measurement.tokens_per_second)
    line = (
        f"{_label(measurement):12} {statistics.median(rates):10.2f} tok/s [{rates[0]:.2f} {rates[-1]:.2f}]"
        f"  {measurement.gb_per_second:7.2f} GB/s {measurement.gflop_per_second:8.2f} GFLOP/s"
    )
    if measurement.fraction_of_limit is not None:
        line += f"  {measurement.fraction_of_limit:.3f} of the {measurement.limited_by} limit"
    return line


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
