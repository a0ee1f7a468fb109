"""The harness that compares with other engines: with engines of this project's own standing in for peers."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_boost import Model, SamplingParams

HARNESS = Path(__file__).parents[1] / "benchmarks" / "peers"
NAMES = ("catalog", "measure", "limits", "prepare", "random_model", "table")
# Answers in the protocol's terms: one request is answered with "the next number", one ends the process.
FAKE = """
import sys
from pathlib import Path
sys.path.insert(0, {workers!r})
from protocol import WholeAnswers, serve

class Fake(WholeAnswers):
    def __init__(self, directory, threads):
        print("engines print what they like")
        self.calls = 0

    def generate(self, prompts, num_tokens):
        self.calls += 1
        if len(prompts) == 13:
            raise RuntimeError("out of luck")
        return [[prompt[-1] + {step} * i for i in range(num_tokens)] for prompt in prompts]

    def facts(self):
        return {{"weight_bytes": 7}}

    def margin(self, prompt, token, other):
        return 0.25 * (token - other)

serve(Fake)
"""


@pytest.fixture(scope="module")
def harness() -> Iterator[SimpleNamespace]:
    """The harness's modules, which import each other by their bare names."""
    sys.path.insert(0, str(HARNESS))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(HARNESS))
        for name in NAMES:
            del sys.modules[name]


@pytest.fixture
def worker(harness: SimpleNamespace, tmp_path: Path) -> Iterator[Any]:
    """Starts stand-ins."""
    started = []

    def start(name: str, step: int = 1) -> Any:
        script = tmp_path / f"{name}.py"
        script.write_text(FAKE.format(workers=str(HARNESS / "workers"), step=step))
        command = [sys.executable, str(script), str(tmp_path), "--threads", "1"]
        started.append(harness.measure.Worker(name, command, {}, tmp_path / f"{name}.log"))
        return started[-1]

    yield start
    for each in started:
        each.close()


def pair_of(harness: SimpleNamespace) -> Any:
    return harness.measure.Pair("c0ffee", "smollm2-135m", "fake", 2)


def test_a_worker_answers(harness: SimpleNamespace, worker: Any) -> None:
    fake = worker("fake")
    assert fake.facts == {"weight_bytes": 7}
    assert fake.load_seconds >= 0
    assert fake.greedy()[:2] == [harness.measure.CHECKED_PROMPT[-1], harness.measure.CHECKED_PROMPT[-1] + 1]
    assert fake.margin([1], 9, 5) == 1.0
    assert fake.seconds(harness.catalog.Task("prefill", 8, 1, 2), seed=1) > 0
    assert fake.peak_bytes > 1 << 20


def test_a_worker_that_fails_is_named(harness: SimpleNamespace, worker: Any) -> None:
    fake = worker("fake")
    with pytest.raises(harness.measure.WorkerError, match=r"fake ended with code 1; see .*fake\.log"):
        fake.seconds(harness.catalog.Task("prefill", 8, 1, 13), seed=1)
    assert "out of luck" in fake.log.read_text()


def test_turns_are_remembered(harness: SimpleNamespace, worker: Any, tmp_path: Path) -> None:
    tasks = [harness.catalog.Task("decode 1", 4, 5, 1), harness.catalog.Task("prefill 512", 6, 1, 1)]
    pair, path = pair_of(harness), tmp_path / "rows.jsonl"
    ours, theirs = worker("llm_boost"), worker("fake", step=2)
    for rounds, expected in ((1, 1), (3, 3), (2, 3)):  # what was done before is not done again
        store = harness.measure.Store(path)
        harness.measure.compare(pair, tasks, ours, theirs, store, rounds, quietly="")
        times = store.of(pair, "time")
        assert [(row["task"], row["tokens"]) for row in times] != []
        assert sum(row["task"] == "decode 1" for row in times) == expected
        assert {row["tokens"] for row in times} == {4, 6}
    (greedy,) = store.of(pair, "greedy")
    assert (greedy["equal"], greedy["margin"]) == (1, -0.25)
    assert {row["engine"] for row in store.of(pair, "load")} == {"llm_boost", "fake"}
    assert len(path.read_text().splitlines()) == len(store.rows) == 6 + 1 + 2 + 2
    other = harness.measure.Pair("decade", "smollm2-135m", "fake", 2)
    assert store.of(other, "time") == []


def test_the_table_shows_ratios_by_turn(harness: SimpleNamespace, tmp_path: Path) -> None:
    pair, store = pair_of(harness), harness.measure.Store(tmp_path / "rows.jsonl")
    for ours, theirs in ((1.0, 2.0), (4.0, 8.0), (1.0, 3.0)):  # the machine was slow in the second turn
        store.add(pair, "time", task="prefill 512", tokens=512, ours=ours, theirs=theirs)
    store.add(pair, "greedy", equal=3, of=32, margin=0.5)
    specs = {spec.name: spec for spec in harness.catalog.MODELS}
    lines = harness.table.compared(store, [pair], specs).splitlines()
    columns = [cell.strip() for cell in lines[3].split("|")]
    assert columns[3] == "prefill 512"
    cells = [cell.strip() for cell in lines[5].split("|")]
    assert cells[3] == "170.7 / 512.0 = **2.00x**"
    assert cells[2] == "-"
    assert cells[-2] == "3 of 32, then by a margin of 0.500"


def test_figures_are_ratios_of_medians(harness: SimpleNamespace, tmp_path: Path) -> None:
    pair, store = pair_of(harness), harness.measure.Store(tmp_path / "rows.jsonl")
    limits = {"bytes_per_second": 10.0, "flops_per_second": 100.0}

    def add(run: str, **results: tuple[float, float]) -> None:
        facts = {
            name.replace("_", " "): {
                "seconds": s,
                "bytes": b,
                "fraction": b / s / 10,
                "beside": b / s / 8,
                "ops": {"engine": 0.5},
            }
            for name, (s, b) in results.items()
        }
        store.add(pair, "limits", run=run, limits=limits, results=facts)

    for seconds in (2.0, 1.0, 90.0):
        add("decode 1", decode_128=(seconds, 10))
    add("context", decode_128=(2, 10), decode_4096=(3.5, 20))
    add("decode 1, one thread", decode_128=(3, 10))
    add("decode 64", decode_64=(4, 10))
    add("scheduler", scheduler=(1, 10))
    store.add(pair, "load", seconds=3.0, read_seconds=2.0, kept_seconds=4.0, peak_bytes=30, needed_bytes=20)
    figures = harness.limits.figures(store, pair)
    assert figures["decode 1"] == 0.5
    assert figures["decode 1, beside"] == 0.625
    assert figures["context"] == 1.2
    assert figures["threads, decode"] == 1.5
    assert (figures["load"], figures["load, kept"]) == (1.5, 0.75)
    assert (figures["memory"], figures["engine"], figures["scheduler"]) == (1.5, 0.5, 0.25)
    assert set(figures) == {target.figure for target in harness.table.TARGETS}
    text = harness.table.against_limits({"m": figures})
    assert "| decode 1, part of the bandwidth limit | ≥ 0.92 | 0.50 |" in text
    assert "prefill" not in text  # was not measured


def test_runs_of_the_benchmark_program(harness: SimpleNamespace, tmp_path: Path) -> None:
    quick = ("--probe-mib", "8")
    for arguments in (("--workloads", "20x3x1"), ("kernels", "sampler", "--shapes", "1000x5x100")):
        facts = harness.limits._bench(harness.limits.Run("r", (*arguments, *quick)), ["tiny"], threads=1)
        assert facts["limits"]["bytes_per_second"] > 0
        assert set(facts["results"]) == ({"sampler"} if arguments[0] == "kernels" else {"prefill 20", "decode 20"})
    assert facts["results"]["sampler"]["seconds"] > 0
    with pytest.raises(harness.measure.WorkerError, match="there is no preset 'nope'"):
        harness.limits._bench(harness.limits.Run("r", quick), ["nope"], threads=1)


def test_random_models_load(harness: SimpleNamespace, tmp_path: Path) -> None:
    spec = next(spec for spec in harness.catalog.MODELS if spec.config.get("model_type") == "qwen2")
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = spec.config | small | {"num_hidden_layers": 2, "vocab_size": 300}
    harness.random_model.write_random_model(tmp_path / "m", config)
    with Model.from_pretrained(tmp_path / "m", use_tqdm=False) as model:
        (output,) = model.generate([1, 2, 3], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 4
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3


def test_names_of_the_catalog_agree(harness: SimpleNamespace) -> None:
    tasks = {task.name for task in harness.catalog.TASKS}
    peers = {peer.name for peer in harness.catalog.PEERS}
    for peer in harness.catalog.PEERS:
        assert (HARNESS / "workers" / peer.worker).exists()
        assert {peer.venv} <= peers | {""}
        assert set(peer.left_out) <= tasks
    models = {spec.name for spec in harness.catalog.MODELS}
    for spec in harness.catalog.MODELS:
        assert set(spec.left_out) <= tasks
        assert spec.pulled or spec.config
    assert all(set(run.models) <= models for run in harness.limits.RUNS)
