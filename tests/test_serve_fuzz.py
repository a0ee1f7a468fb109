"""A few hundred random requests; `fuzz_server.py` sends as many as one likes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzz_server import campaign
from serving import serving

from llm_boost import Model


def test_random_requests_cause_no_server_error(tiny_model: Callable[[str], Path]) -> None:
    with (
        Model.from_pretrained(tiny_model("llama_mha"), max_num_seqs=8, use_tqdm=False) as model,
        serving(model, max_queue=64) as server,
    ):
        statuses = campaign(server, range(400))
        assert server.get("/health").status == 200
    assert not [status for status in statuses if status.startswith("5")], statuses
    assert statuses["200"] > 80  # most of the body of a valid request survived
    assert statuses["400"] > 80
