"""Replicas on Ray Serve, where Ray is installed. It starts a Ray cluster on this machine, which takes a while."""

from __future__ import annotations

import json
import re
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from reference.tiny_models import TINY_SPECS, write_tiny_model

pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("starlette", reason="the serve extra is not installed")

from llm_boost import Model, SamplingParams
from llm_boost.errors import ConfigError
from llm_boost.integrations.ray import app

pytestmark = pytest.mark.filterwarnings("default")

URL = "http://127.0.0.1:8000"
DOCUMENT = Path(__file__).parent.parent / "docs" / "ray.md"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", TINY_SPECS["llama_mha"])


@pytest.fixture(scope="module")
def serve() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        import ray
        from ray import serve

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield serve
    serve.shutdown()
    ray.shutdown()


def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def completion(number: int) -> str:
    body = {"model": "tiny", "prompt": f"number {number}", "max_tokens": 20, "temperature": 0}
    text: str = post("/v1/completions", body)["choices"][0]["text"]
    return text


def test_two_replicas(directory: Path, serve: Any) -> None:
    """The documented example, with a tiny model."""
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert '"smollm2-135m-instruct"' in example
    exec(example.replace('"smollm2-135m-instruct"', repr(str(directory))), {})
    (application,) = serve.status().applications.values()
    (replicas,) = (deployment.replica_states for deployment in application.deployments.values())
    assert {str(state): count for state, count in replicas.items()} == {"RUNNING": 2}
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(completion, range(40)))
    with Model.from_pretrained(directory, use_tqdm=False) as model:
        params = SamplingParams(temperature=0, max_tokens=20)
        expected = model.generate([f"number {n}" for n in range(40)], params)
    assert texts == [result.outputs[0].text for result in expected]
    assert used_replicas() == 2


def used_replicas() -> int:
    """How many replicas have computed something, as the metrics of whichever one answers tell."""
    computed = set()
    for _ in range(50):
        with urllib.request.urlopen(f"{URL}/metrics", timeout=60) as response:
            text = response.read().decode()
        (tokens,) = re.findall(r"^vllm:generation_tokens_total\S* (\S+)$", text, re.MULTILINE)
        computed.add(float(tokens))
    return len(computed - {0.0})


def test_arguments() -> None:
    assert app({"model": "some/model", "num_replicas": "2", "max_num_seqs": "8", "api_key": "k"}) is not None
    for arguments, message in [
        ({"num_replicas": "2"}, "got no model"),
        (
            {"model": "m", "replicas": "2"},
            "unknown argument of the Ray application 'replicas'; did you mean 'num_replicas'",
        ),
        ({"model": "m", "num_replicas": "two"}, "num_replicas is 'two', expected an integer"),
    ]:
        with pytest.raises(ConfigError, match=message):
            app(arguments)
