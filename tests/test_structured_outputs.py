"""Output of a prescribed form, through the Python API."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_boost import ConfigError, Model, RequestError, SamplingParams, StructuredOutputsParams


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> Iterator[Model]:
    with Model.from_pretrained(tiny_model("qwen2_tied"), max_num_seqs=8, use_tqdm=False) as loaded:
        yield loaded


def texts(model: Model, form: Any, **params: Any) -> list[str]:
    """Eight samples, all of which ended by themselves."""
    values = {"n": 4, "max_tokens": 120, "seed": 1, "structured_outputs": form, **params}
    outputs = model.generate(["abc", "x"], SamplingParams(**values))
    samples = [sample for output in outputs for sample in output.outputs]
    assert [sample.finish_reason for sample in samples] == ["stop"] * len(samples)
    return [sample.text for sample in samples]


class TestForms:
    """A random model writes what it must."""

    def test_choice(self, model: Model) -> None:
        choices = ["red (dark)", "green+", "a.b|c", "水"]
        found = texts(model, {"choice": choices}, temperature=2.0)
        assert set(found) <= set(choices)
        assert len(set(found)) > 1

    @pytest.mark.parametrize("parameters", [{"temperature": 0}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.2}, {}])
    def test_regex(self, model: Model, parameters: dict[str, Any]) -> None:
        for text in texts(model, StructuredOutputsParams(regex=r"[0-9]{3}-[a-f]{1,4}!"), **parameters):
            assert re.fullmatch(r"[0-9]{3}-[a-f]{1,4}!", text)

    def test_json_schema(self, model: Model) -> None:
        schema = {
            "type": "object",
            "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 20}},
            "required": ["kind", "age"],
            "additionalProperties": False,
            "x-guidance": {"whitespace_flexible": False},
        }
        for form in (schema, json.dumps(schema)):
            for text in texts(model, {"json": form}):
                value = json.loads(text)
                assert value["kind"] in ("cat", "dog")
                assert 0 <= value["age"] <= 20

    def test_grammar(self, model: Model) -> None:
        for text in texts(
            model, {"grammar": 'start: "(" start ")" | "x"'}, logit_bias={model.tokenizer.encode("x")[0]: 4.0}
        ):
            assert re.fullmatch(r"\(*x\)*", text)
            assert text.count("(") == text.count(")")

    def test_json_object_that_is_cut_off(self, model: Model) -> None:
        params = SamplingParams(structured_outputs={"json_object": True}, max_tokens=10, temperature=0)
        output = model.generate("abc", params)[0].outputs[0]
        assert output.text.startswith("{")
        assert output.finish_reason in ("length", "stop")

    def test_samples_are_repeatable_whatever_else_runs(self, model: Model) -> None:
        constrained = SamplingParams(structured_outputs={"regex": "[a-z]{30}"}, seed=4, max_tokens=40)
        alone = model.generate("abc", constrained)[0].outputs[0].token_ids
        free = SamplingParams(max_tokens=60, ignore_eos=True, seed=2)
        mixed = model.generate(["abc", *["x"] * 7], [constrained, *[free] * 7])
        assert mixed[0].outputs[0].token_ids == alone

    def test_a_sample_that_a_stop_string_ends_is_computed_no_further(self, model: Model) -> None:
        """Constrained samples wait for their masks, so that the engine is never ahead of the text."""
        form = StructuredOutputsParams(regex="[ab]{60}")
        params = SamplingParams(n=2, temperature=1, seed=5, max_tokens=60, stop=["a"], structured_outputs=form)
        num_running: list[int] = []
        ended = None
        for piece in model.stream("x", params):
            if ended is not None and ended != piece.index:  # the first may have come before the end
                num_running.append(model.stats()["num_running"])
            elif piece.finish_reason is not None:
                ended = piece.index
        assert len(num_running) > 4
        assert set(num_running[1:-2]) == {1}  # when the last but one is shown, the last may be there already

    def test_a_stream_ended_early_leaves_nothing(self, model: Model) -> None:
        stream = model.stream("abc", SamplingParams(structured_outputs={"regex": "[a-z]{300}"}, max_tokens=400))
        next(stream)
        stream.close()
        assert texts(model, {"choice": ["a"]}, n=1) == ["a", "a"]
        while (stats := model.stats())["num_running"]:
            pass
        assert stats["num_free_blocks"] == stats["num_blocks"]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "has nothing, expected one of json, json_object"),
        ({"regex": "a", "choice": ["b"]}, "has regex, choice, expected one of"),
        ({"regexp": "a"}, "did you mean 'regex'"),
        ("a", "expected a mapping"),
        ({"regex": 5}, "regex is 5, expected text"),
        ({"regex": "("}, "the regex cannot be used: .*unclosed group"),
        ({"json": "{"}, "is no JSON"),
        ({"json": [1]}, "expected a JSON schema"),
        ({"json": {"type": "zzz"}}, "the json cannot be used"),
        ({"json_object": "yes"}, "json_object is 'yes', expected True"),
        ({"choice": []}, "expected 1 to 1024 strings"),
        ({"choice": [""]}, "expected 1 to 1024 strings"),
        ({"choice": "ab"}, "expected 1 to 1024 strings"),
        ({"grammar": "nonsense"}, "the grammar cannot be used"),
        ({"regex": "a" * 70_000}, "has 70000 characters, expected at most 65536"),
        ({"regex": "(a{1000}){1000}"}, "structured_outputs: .*too many"),
    ],
)
def test_bad_forms_are_refused(model: Model, form: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.generate("x", SamplingParams(structured_outputs=form))


@pytest.mark.parametrize("values", [{"min_tokens": 1}, {"ignore_eos": True}])
def test_the_form_alone_says_when_the_text_ends(model: Model, values: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="min_tokens and ignore_eos cannot be used"):
        model.generate("x", SamplingParams(structured_outputs={"choice": ["a"]}, **values))


def test_without_the_package(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with (
        Model.from_pretrained(tiny_model("qwen2_tied"), use_tqdm=False) as model,
        pytest.raises(ConfigError, match=r'pip install "llm_boost\[serve\]"'),
    ):
        model.generate("x", SamplingParams(structured_outputs={"choice": ["a"]}))
