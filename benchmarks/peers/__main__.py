"""Compares llm_boost with its peers on this machine: ``python benchmarks/peers``.

Sets up every peer in a virtual environment of its own from PyPI, prepares the models, checks that peers answer alike,
times ours and theirs in turns, measures ours against the machine's limits, and writes tables and a plot. What was done
before is not done again: run it as often as it takes. It needs a compiler, some 25 GB of disk and, the first time, an
hour or more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from catalog import MODELS, PEERS, ModelSpec, Peer, tasks_of
from limits import figures, measure_limits
from measure import Pair, Store, WorkerError, alone, compare, start_ours, start_peer
from prepare import SetupError, convert_model, prepare_model, prepare_peer, python_of
from table import against_limits, compared, plot

from llm_boost import _core
from llm_boost.cli.bench_model import find_limits

ROOT = Path(__file__).parents[2]
SPECS = {spec.name: spec for spec in MODELS}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/peers", description=__doc__)
    names = [peer.name for peer in PEERS]
    parser.add_argument("--home", type=Path, default=Path.home() / ".cache" / "llm_boost" / "peers", help="where to")
    parser.add_argument("--peers", nargs="*", choices=names, default=names)
    parser.add_argument("--models", nargs="+", choices=SPECS, default=[*SPECS], help="7B shapes need 24 GB of memory")
    parser.add_argument("--threads", type=int, default=_core.usable_threads())
    parser.add_argument("--rounds", type=int, default=5, help="turns of each task")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--quietly", default="", metavar="COMMAND", help="runs around each turn, to keep others away")
    parser.add_argument("--no-limits", action="store_true", help="leave out ours against the machine's limits")
    parser.add_argument("--setup-only", action="store_true")
    parser.add_argument(
        "--tables-of",
        nargs="+",
        metavar="COMMIT",
        help="measure nothing: write what was measured there before, of each pair at the first of them that has it",
    )
    return parser.parse_args()


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _measure(arguments: argparse.Namespace, store: Store, pair: Pair, peer: Peer, spec: ModelSpec) -> None:
    home: Path = arguments.home
    prepare_peer(home, peer)
    directory = prepare_model(home, spec)
    model = convert_model(home, PEERS, spec, directory, peer.model_format)
    tasks = tasks_of(spec, peer)
    times = store.of(pair, "time")
    finished = all(sum(row["task"] == task.name for row in times) >= arguments.rounds for task in tasks)
    if arguments.setup_only or finished:
        return
    logs = home / "logs" / spec.name
    with ExitStack() as stack:
        with alone(arguments.quietly):
            ours = start_ours(peer, directory, arguments.threads, logs / f"llm_boost-{peer.name}.log")
            stack.callback(ours.close)
        with alone(arguments.quietly):
            log = logs / f"{peer.name}.log"
            theirs = start_peer(peer, python_of(home, peer), home, model, arguments.threads, log)
            stack.callback(theirs.close)
        compare(pair, tasks, ours, theirs, store, arguments.rounds, arguments.quietly)


def _measure_limits(arguments: argparse.Namespace, store: Store, pair: Pair, spec: ModelSpec) -> None:
    preset = [spec.name] if spec.layers is None else [spec.name, "--layers", str(spec.layers)]
    directory = prepare_model(arguments.home, spec)
    log = arguments.home / "logs" / spec.name / "llm_boost.log"
    measure_limits(store, pair, preset, directory, log, arguments.rounds, arguments.quietly)


def _header(arguments: argparse.Namespace, commits: Sequence[str]) -> str:
    cpu = next(
        (line.split(": ", 1)[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    text = f"{datetime.now(timezone.utc):%Y-%m-%d}, {cpu}, {arguments.threads} threads, bf16 weights, "
    text += f"commit {' and '.join(commits)}."
    if arguments.tables_of is None:
        with alone(arguments.quietly):
            limits = find_limits(arguments.threads)
        if limits is not None:
            text += (
                f" Limits just after: read {limits.bytes_per_second / 1e9:.1f} GB/s,"
                f" arithmetic {limits.flops_per_second / 1e9:.0f} GFLOP/s."
            )
    text += "\nTokens per second, peer / ours; medians of turns taken one after the other.\n"
    return text + f"Made by `{' '.join(['python', 'benchmarks/peers', *sys.argv[1:]])}`.\n"


def _write(arguments: argparse.Namespace, store: Store, text: str, pairs: list[Pair], measured: list[Pair]) -> None:
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "peers.md").write_text(text, "utf-8")
    rows = [row for pair in measured for row in store.of(pair)]
    (arguments.results / "peers.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    if pairs:
        try:
            plot(store, pairs, SPECS, arguments.results / "peers.svg")
        except ModuleNotFoundError:
            print("no plot: it needs matplotlib", file=sys.stderr)


def main() -> int:
    """Runs everything that is left to do; returns 1 when something could not be measured."""
    arguments = _arguments()
    commits = arguments.tables_of or [_commit()]
    measuring = arguments.tables_of is None
    store = Store(arguments.home / "measurements.jsonl")
    failed = False
    pairs = []
    limited = []
    limits: dict[str, dict[str, float]] = {}

    def measured(model: str, peer: str, kind: str) -> Pair:
        candidates = [Pair(commit, model, peer, arguments.threads) for commit in commits]
        return next((pair for pair in candidates if store.of(pair, kind)), candidates[0])

    for spec in (SPECS[name] for name in arguments.models):
        for peer in (peer for peer in PEERS if peer.name in arguments.peers):
            pair = measured(spec.name, peer.name, "time")
            try:
                if measuring:
                    print(f"{spec.name}: {peer.name}", flush=True)
                    _measure(arguments, store, pair, peer, spec)
            except (SetupError, WorkerError) as error:
                failed = True
                print(f"  {error}", file=sys.stderr)
            if store.of(pair, "time"):
                pairs.append(pair)
        pair = measured(spec.name, "limits", "limits")
        if measuring and not (arguments.no_limits or arguments.setup_only):
            print(f"{spec.name}: limits", flush=True)
            _measure_limits(arguments, store, pair, spec)
        if store.of(pair, "limits"):
            limits[spec.title] = figures(store, pair)
            limited.append(pair)
    if pairs or limits:
        text = _header(arguments, commits) + compared(store, pairs, SPECS)
        if limits:
            text += "\n### Against the machine's limits\n" + against_limits(limits)
        _write(arguments, store, text, pairs, [*pairs, *limited])
        print(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
