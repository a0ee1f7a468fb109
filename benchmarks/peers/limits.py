"""Measures ours against the machine's limits: what no peer is needed for.

Every run is a process of `llm_boost_bench`, which measures the limits of the machine in the same minute. Runs follow
one another, and only then come their second readings: what is compared was made under the same conditions.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog import Peer, Task
from measure import Pair, Store, WorkerError, alone, start_ours

from llm_boost.cli.bench_model import bench_program

_READ_BYTES = 1 << 22
LONG_CONTEXT = 4096
SHORT_CONTEXT = 128


@dataclass(frozen=True, slots=True)
class Run:
    """A run of `llm_boost_bench`.

    Attributes:
        name: As tables show it.
        arguments: Beside the model and the number of threads; a kernel's name makes it one of a kernel.
        threads: Of the run; None for those of the comparison.
        isa: An instruction set level; "" for the machine's best.
        models: Of which models it is made; all where this is empty.
    """

    name: str
    arguments: tuple[str, ...]
    threads: int | None = None
    isa: str = ""
    models: tuple[str, ...] = ()


RUNS = (
    Run("decode 1", ("--workloads", f"{SHORT_CONTEXT}x65x1")),
    Run("decode 1, one thread", ("--workloads", f"{SHORT_CONTEXT}x33x1"), threads=1),
    Run("decode 1, AVX2", ("--workloads", f"{SHORT_CONTEXT}x65x1"), isa="avx2"),
    Run("context", ("--workloads", f"{SHORT_CONTEXT}x33x1,{LONG_CONTEXT}x17x1")),
    Run("first token", ("--workloads", "16x65x1")),
    Run("prefill 512", ("--workloads", "512x1x1")),
    Run("prefill 512, one thread", ("--workloads", "512x1x1"), threads=1),
    Run("prefill 2048", ("--workloads", "2048x1x1")),
    Run("decode 8", ("--workloads", "64x33x8")),
    Run("decode 32", ("--workloads", "64x33x32")),
    Run("decode 64", ("--workloads", "64x17x64"), models=("smollm2-135m", "qwen2-0.5b")),
    Run("scheduler", ("kernels", "scheduler", "--shapes", "64x512"), models=("smollm2-135m", "qwen2-0.5b")),
    Run("top_k", ("kernels", "sampler", "--shapes", "151936x50x100"), models=("qwen2-0.5b",)),
    Run("top_p", ("kernels", "sampler", "--shapes", "151936x0x90"), models=("qwen2-0.5b",)),
)
OURS = Peer("llm_boost", "llm_boost_worker.py")


def _median(rows: Sequence[dict[str, Any]], *keys: str) -> float:
    values = []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value[key]
        values.append(float(value))
    return statistics.median(values) if values else float("nan")


def measure_limits(
    store: Store, pair: Pair, preset: Sequence[str], directory: Path, log: Path, rounds: int, quietly: str
) -> None:
    """Makes the readings that are missing.

    Args:
        store: Where they go.
        pair: The model and the commit; its peer is "limits".
        preset: The model's name and its layers as `llm_boost_bench` takes them.
        directory: The model's files.
        log: Of our worker.
        rounds: Readings of each run.
        quietly: Keeps others away meanwhile.
    """
    for number in range(rounds):
        for run in (run for run in RUNS if not run.models or pair.model in run.models):
            if sum(row["run"] == run.name for row in store.of(pair, "limits")) <= number:
                with alone(quietly):
                    facts = _bench(run, preset, pair.threads)
                store.add(pair, "limits", run=run.name, **facts)
        if len(store.of(pair, "load")) <= number:
            with alone(quietly):
                facts = _load(directory, pair.threads, log)
            store.add(pair, "load", **facts)


def _bench(run: Run, preset: Sequence[str], threads: int) -> dict[str, Any]:
    """Runs `llm_boost_bench`; what a table needs of its report."""
    program = bench_program()
    if program is None:
        raise WorkerError("llm_boost_bench is not installed")
    what = () if run.arguments[0] == "kernels" else preset
    command = [program, *what, *run.arguments, "--threads", str(run.threads or threads), "--repeat", "2", "--json", "-"]
    environment = os.environ | ({"LLM_BOOST_ISA": run.isa} if run.isa else {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise WorkerError(f"{' '.join(map(str, command))}: {done.stderr}")
    report = json.loads(done.stdout)
    results = {
        " ".join([result["kind"], str(result["shape"].get("prompt", ""))]).strip(): {
            "seconds": result["seconds"]["median"],
            "bytes": result["bytes"],
            "fraction": result.get("fraction_of_limit"),
            "beside": result.get("fraction_of_limit_beside"),
            "limited_by": result.get("limited_by"),
            "ops": {op["name"]: op["share"] for op in result.get("ops", [])},
        }
        for result in report["results"]
    }
    limits = {name: value["best"] for name, value in report["limits"].items()}
    return {"isa": report["isa"], "limits": limits, "results": results}


def _load(directory: Path, threads: int, log: Path) -> dict[str, Any]:
    """Loads a model in a process of its own, once its files are in the page cache, and computes one long prompt."""
    files = sorted(directory.glob("*.safetensors"))
    _read(files, threads)
    read_seconds = _read(files, threads)
    kept_seconds = _read(files, threads, keep=True)
    worker = start_ours(OURS, directory, threads, log)
    try:
        task = Task("prefill 2048", 2048, 1, 1)
        worker.seconds(task, seed=1)
        needed = worker.facts["weight_bytes"] + task.prompt * worker.facts["cache_bytes_a_token"]
        return {
            "seconds": worker.load_seconds,
            "read_seconds": read_seconds,
            "kept_seconds": kept_seconds,
            "peak_bytes": worker.peak_bytes,
            "needed_bytes": needed,
        }
    finally:
        worker.close()


def _read(files: Sequence[Path], threads: int, *, keep: bool = False) -> float:
    """Reads files once, all threads at all of them, and returns the seconds: the floor of loading.

    Args:
        files: What to read.
        threads: How many read at once.
        keep: Into memory of their own, as a process that goes on to use them must; else all into one small buffer.
    """

    def part(file: Path, memory: mmap.mmap | bytearray, thread: int) -> None:
        with memoryview(memory) as buffer, file.open("rb", buffering=0) as source:
            for start in range(thread * _READ_BYTES, file.stat().st_size, threads * _READ_BYTES):
                at = start if keep else 0
                with buffer[at : at + _READ_BYTES] as target:
                    os.preadv(source.fileno(), [target], start)

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        futures = []
        for file in files:
            memory = mmap.mmap(-1, file.stat().st_size) if keep else None
            if memory:
                memory.madvise(mmap.MADV_HUGEPAGE)
            futures += [pool.submit(part, file, memory or bytearray(_READ_BYTES), thread) for thread in range(threads)]
        for future in futures:
            future.result()
    return time.perf_counter() - started


def figures(store: Store, pair: Pair) -> dict[str, float]:
    """The figures of one model that targets are about; what was not measured is not a number."""
    rows = {run.name: [row for row in store.of(pair, "limits") if row["run"] == run.name] for run in RUNS}
    loads = store.of(pair, "load")

    def seconds(run: str, result: str) -> float:
        return _median(rows[run], "results", result, "seconds")

    def fraction(run: str, result: str) -> float:
        return _median(rows[run], "results", result, "fraction")

    def bandwidth(run: str) -> float:
        return _median(rows[run], "limits", "bytes_per_second")

    def bytes_read(run: str, result: str) -> float:
        return _median(rows[run], "results", result, "bytes")

    def beside(run: str, result: str) -> float:
        return _median(rows[run], "results", result, "beside")

    near, far = (f"decode {context}" for context in (SHORT_CONTEXT, LONG_CONTEXT))
    # A step's time, as the bytes that the machine reads in it at the bandwidth that it has just then.
    time_near, time_far = (bytes_read("context", result) / beside("context", result) for result in (near, far))
    step = seconds("decode 1", near)
    speedup = seconds("decode 1, one thread", near) / step
    return {
        "decode 1": fraction("decode 1", near),
        "decode 1, beside": beside("decode 1", near),
        "decode 1, AVX2": fraction("decode 1, AVX2", near),
        "decode 1, AVX2, beside": beside("decode 1, AVX2", near),
        "prefill 512": fraction("prefill 512", "prefill 512"),
        "prefill 2048": fraction("prefill 2048", "prefill 2048"),
        "decode 8": fraction("decode 8", "decode 64"),
        "decode 32": fraction("decode 32", "decode 64"),
        "context": (time_far - time_near) / (bytes_read("context", far) - bytes_read("context", near)),
        "load": _median(loads, "seconds") / _median(loads, "read_seconds"),
        "load, kept": _median(loads, "seconds") / _median(loads, "kept_seconds"),
        "memory": _median(loads, "peak_bytes") / _median(loads, "needed_bytes"),
        "first token": seconds("first token", "prefill 16") / seconds("first token", "decode 16"),
        "top_k": seconds("top_k", "sampler") / step,
        "top_p": seconds("top_p", "sampler") / step,
        "scheduler": seconds("scheduler", "scheduler") / seconds("decode 64", "decode 64"),
        "engine": _median(rows["decode 64"], "results", "decode 64", "ops", "engine"),
        "threads, prefill": seconds("prefill 512, one thread", "prefill 512") / seconds("prefill 512", "prefill 512"),
        "threads, decode": speedup / (bandwidth("decode 1") / bandwidth("decode 1, one thread")),
    }
