"""Runs a scenario on the test double of an Ascend device in a process of its own; what it finds goes out as JSON.

The double reads its settings once in a process, and counts what is alive at its end.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_boost import LlmBoostError, Model, SamplingParams, _core

HAS_ATB = "atb" in _core.backend_names()


def library_path() -> Path:
    """The double's libascendcl.so, which this process has loaded together with the core."""
    maps = Path("/proc/self/maps").read_text("utf-8").splitlines()
    return Path(next(line.split()[-1] for line in maps if line.endswith("libascendcl.so")))


if HAS_ATB:  # what sourcing the two set_env.sh does
    os.environ.setdefault("ASCEND_HOME_PATH", str(library_path().parent.parent))
    os.environ.setdefault("ATB_HOME_PATH", str(library_path().parents[4] / "nnal/atb/latest/atb/cxx_abi_1"))


class Double:
    """The controls of the double."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(library_path()))
        for name in ("error_count", "calls", "live", "log"):
            getattr(self._library, f"atb_double_{name}").restype = ctypes.c_uint64

    def errors(self) -> int:
        return int(self._library.atb_double_error_count())

    def log(self) -> str:
        size = int(self._library.atb_double_log(None, ctypes.c_size_t(0)))
        text = ctypes.create_string_buffer(size + 1)
        self._library.atb_double_log(text, ctypes.c_size_t(size + 1))
        return text.value.decode()

    def fail(self, call: str, nth: int) -> None:
        self._library.atb_double_fail(call.encode(), ctypes.c_uint64(nth))

    def calls(self, call: str) -> int:
        return int(self._library.atb_double_calls(call.encode()))

    def live(self, kind: str = "any") -> int:
        return int(self._library.atb_double_live(kind.encode()))


def in_process(scenario: str, arguments: Mapping[str, Any], **environment: str) -> Any:
    """Runs the function `scenario` of this module in another process, and gives what it returns."""
    return wait(start(scenario, arguments, **environment))


def start(scenario: str, arguments: Mapping[str, Any], **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, scenario, json.dumps(arguments)]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def on_two_ranks(scenario: str, arguments: Mapping[str, Any], *environments: Mapping[str, str]) -> list[Any]:
    """Runs it in two processes that share a model, each with its environment."""
    shared = {"RANK_SIZE": "2", "ATB_SHARE_MEMORY_NAME_SUFFIX": str(os.getpid())}
    ranks = [
        start(scenario, arguments, RANK_ID=str(rank), **shared, **environment)
        for rank, environment in enumerate(environments)
    ]
    return [wait(rank) for rank in ranks]


def wait(process: subprocess.Popen[str]) -> Any:
    output, errors = process.communicate()
    assert process.returncode == 0, f"exit code {process.returncode}\n{output}\n{errors}"
    return json.loads(output)


def generate(model: Model, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return [list(result.outputs[0].token_ids) for result in model.generate([list(p) for p in prompts], params)]


def tokens(
    directory: str, prompts: list[list[int]], max_tokens: int, options: dict[str, Any], *, at_once: bool = False
) -> dict[str, Any]:
    """Greedy tokens of all prompts, given one after another or all at once, and a sample."""
    with Model.from_pretrained(directory, backend="atb", use_tqdm=False, **options) as model:
        groups = [prompts] if at_once else [[prompt] for prompt in prompts]
        result = [found for group in groups for found in generate(model, group, max_tokens)]
        params = SamplingParams(temperature=1, max_tokens=8, ignore_eos=True)
        sampled = list(model.generate([prompts[0]], params)[0].outputs[0].token_ids)
        backend = model.info().backend
    double = Double()
    return {
        "tokens": result,
        "sampled": sampled,
        "backend": backend,
        "captured": double.calls("aclmdlRICaptureBegin"),
        "allocated": double.calls("aclrtMalloc"),
        "log": double.log(),
        "live": double.live(),
    }


def load_error(directory: str) -> str:
    """The error of loading a model."""
    try:
        Model.from_pretrained(directory, backend="atb", use_tqdm=False).close()
    except LlmBoostError as error:
        return str(error)
    return ""


def failures(directory: str, prompts: list[list[int]], options: dict[str, Any], calls: list[str]) -> dict[str, Any]:
    """A short generation once for each call it makes, with that call failing.

    Gives, for each, the error of loading or generating, whether the model said that it cannot be used any more or gave
    the right tokens afterwards, and what was still alive after closing it.
    """
    # The first model takes what stays for the whole process.
    with Model.from_pretrained(directory, backend="atb", use_tqdm=False, **options) as model:
        expected = generate(model, prompts, 2)
    double = Double()
    results = []
    for call in calls:
        before = double.calls(call)
        with Model.from_pretrained(directory, backend="atb", use_tqdm=False, **options) as model:
            generate(model, prompts, 2)
            count = double.calls(call) - before
        for nth in range(1, count + 1):
            results.append({"call": call, "nth": nth, **_fail_once(double, call, nth, directory, prompts, options)})
            if results[-1]["after"] not in ("not loaded", "unusable"):
                results[-1]["after"] = "right" if results[-1]["after"] == expected else "wrong"
    return {"results": results, "log": [line for line in double.log().splitlines() if line.startswith("ERROR")]}


def failed_rank(directory: str, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
    """The error that loading or generating ends in where a rank fails, and what the model says afterwards."""
    double = Double()
    error, after = "", "not loaded"
    options = {"num_blocks": 12, "max_num_seqs": 4, "max_model_len": 400, "num_threads": 1}
    try:
        with Model.from_pretrained(directory, backend="atb", use_tqdm=False, **options) as model:
            try:
                generate(model, prompts, max_tokens)
            except LlmBoostError as caught:
                error, after = str(caught), "usable"
                try:
                    generate(model, prompts, 1)
                except LlmBoostError as again:
                    after = "unusable" if "cannot be used after an earlier error" in str(again) else str(again)
    except LlmBoostError as caught:
        error = str(caught)
    log = "\n".join(line for line in double.log().splitlines() if not line.startswith("INJECTED"))
    return {"error": error, "after": after, "log": log, "live": double.live()}


def _fail_once(
    double: Double, call: str, nth: int, directory: str, prompts: list[list[int]], options: dict[str, Any]
) -> dict[str, Any]:
    double.fail(call, nth)
    error, kind, after = "", "", "not loaded"
    try:
        with Model.from_pretrained(directory, backend="atb", use_tqdm=False, **options) as model:
            after = []
            try:
                for _ in range(2):  # whether prompts meet in a step varies, and with it the number of calls
                    generate(model, prompts, 2)
            except LlmBoostError as caught:
                error, kind = str(caught), type(caught).__name__
            try:
                after = generate(model, prompts, 2)
            except LlmBoostError as caught:
                after = "unusable" if "cannot be used after an earlier error" in str(caught) else str(caught)
    except LlmBoostError as caught:
        error, kind = str(caught), type(caught).__name__
    return {"error": error, "type": kind, "after": after, "live": double.live()}


if __name__ == "__main__":
    scenarios = {"tokens": tokens, "failures": failures, "failed_rank": failed_rank, "load_error": load_error}
    result = scenarios[sys.argv[1]](**json.loads(sys.argv[2]))  # type: ignore[operator]
    sys.stdout.write(json.dumps(result))
