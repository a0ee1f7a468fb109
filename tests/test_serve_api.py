"""What the server answers: the official client against every route, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, BadRequestError, NotFoundError, OpenAI
from serving import NAME, TestServer, serving

from llm_boost import Model, SamplingParams

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
CHAT: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> Iterator[Model]:
    with Model.from_pretrained(tiny_model("llama_mha"), max_num_seqs=8, use_tqdm=False) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[TestServer]:
    with serving(model, max_stop_strings=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: TestServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def alone(model: Model, prompt: Any, **params: Any) -> Any:
    """What the Python API gives."""
    values = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, **params}
    return model.generate(prompt, SamplingParams(**values))[0]


class TestCompletions:
    """``/v1/completions``."""

    def test_text_and_usage(self, client: OpenAI, model: Model) -> None:
        want = alone(model, "abc")
        got = client.completions.create(model=NAME, prompt="abc", **GREEDY)
        assert (got.object, got.model) == ("text_completion", NAME)
        assert [(c.index, c.text, c.finish_reason) for c in got.choices] == [(0, want.outputs[0].text, "length")]
        assert got.usage is not None
        assert (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.total_tokens) == (3, 12, 15)

    def test_cached_prompt_tokens_are_reported(self, client: OpenAI) -> None:
        prompt = "a prompt that fills some blocks of the cache, for sure"
        for expected in (0, 48):
            got = client.completions.create(model=NAME, prompt=prompt, **GREEDY)
            assert got.usage is not None
            assert got.usage.prompt_tokens_details is not None
            assert got.usage.prompt_tokens_details.cached_tokens == expected

    def test_token_ids_and_batches_and_n(self, client: OpenAI, model: Model) -> None:
        prompts = ["abc", "hello"]
        ids = [model.tokenizer.encode(prompt) for prompt in prompts]
        want = [alone(model, prompt).outputs[0].text for prompt in prompts]
        for form in (prompts, ids):
            got = client.completions.create(model=NAME, prompt=form, **GREEDY)
            assert [choice.text for choice in got.choices] == want
        one = client.completions.create(model=NAME, prompt=ids[0], **GREEDY)
        assert one.choices[0].text == want[0]
        several = client.completions.create(model=NAME, prompt=prompts, n=3, seed=7, max_tokens=8, temperature=1)
        again = [alone(model, prompt, n=3, seed=7, max_tokens=8, temperature=1, ignore_eos=False) for prompt in prompts]
        assert [c.index for c in several.choices] == list(range(6))
        assert [c.text for c in several.choices] == [s.text for output in again for s in output.outputs]

    @pytest.mark.parametrize(
        "parameters", [{"top_k": 3, "min_p": 0.05}, {"repetition_penalty": 1.5}, {"min_tokens": 9}]
    )
    def test_sampling_parameters_reach_the_engine(
        self, client: OpenAI, model: Model, parameters: dict[str, Any]
    ) -> None:
        values = {"temperature": 1.5, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.2, "seed": 3}
        want = alone(model, "abc", **values, **parameters, ignore_eos=False, logit_bias={80: 5.0}, max_tokens=20)
        got = client.completions.create(
            model=NAME, prompt="abc", max_tokens=20, logit_bias={"80": 5}, **values, extra_body=parameters
        )
        assert got.choices[0].text == want.outputs[0].text
        assert got.choices[0].finish_reason == want.outputs[0].finish_reason

    def test_stop_string(self, client: OpenAI, model: Model) -> None:
        free = alone(model, "abc", max_tokens=40).outputs[0].text
        stop = free[5:7]
        got = client.completions.create(model=NAME, prompt="abc", stop=[stop], **{**GREEDY, "max_tokens": 40})
        assert got.choices[0].text == free[: free.index(stop)]
        assert got.choices[0].finish_reason == "stop"
        assert got.choices[0].model_extra is not None
        assert got.choices[0].model_extra["stop_reason"] == stop

    def test_echo_with_logprobs_as_evaluation_harnesses_ask(self, client: OpenAI, model: Model) -> None:
        prompt = model.tokenizer.encode("hello there")
        want = alone(model, prompt, max_tokens=1, logprobs=1, prompt_logprobs=1)
        got = client.completions.create(
            model=NAME, prompt=[prompt, prompt[:4]], temperature=0, max_tokens=1, logprobs=1, echo=True, seed=1234
        )
        assert [c.index for c in got.choices] == [0, 1]
        logprobs = got.choices[0].logprobs
        assert logprobs is not None
        assert got.choices[0].text == "hello there" + want.outputs[0].text
        entries = [*want.prompt_logprobs[1:], *want.outputs[0].logprobs]
        tokens = [*prompt, *want.outputs[0].token_ids]
        assert logprobs.token_logprobs == [
            None,
            *(pytest.approx(entry[token].logprob) for token, entry in zip(tokens[1:], entries, strict=True)),
        ]
        assert logprobs.top_logprobs is not None
        assert logprobs.top_logprobs[0] is None
        for top, entry in zip(logprobs.top_logprobs[1:], entries, strict=True):
            assert max(top.values()) == pytest.approx(max(value.logprob for value in entry.values()))
        assert logprobs.text_offset == [len("hello there"[:i]) for i in range(11)] + [11]

    def test_asking_about_the_prompt_alone(self, client: OpenAI) -> None:
        got = client.completions.create(model=NAME, prompt="hello", max_tokens=0, echo=True, logprobs=0, temperature=0)
        assert got.choices[0].text == "hello"
        assert got.choices[0].logprobs is not None
        assert got.choices[0].logprobs.tokens == list("hello")
        assert got.usage is not None
        assert got.usage.completion_tokens == 0

    @pytest.mark.parametrize("echo", [False, True])
    @pytest.mark.parametrize("logprobs", [None, 2])
    def test_streams_add_up_to_the_whole(self, client: OpenAI, echo: bool, logprobs: int | None) -> None:
        arguments: dict[str, Any] = {"model": NAME, "prompt": ["abc", "zé"], "n": 2, "seed": 5, "temperature": 1}
        arguments |= {"max_tokens": 15, "echo": echo, "logprobs": logprobs}
        whole = client.completions.create(**arguments)
        texts = ["", "", "", ""]
        tables: list[dict[str, list[Any]]] = [{} for _ in texts]
        reasons: list[Any] = [None] * 4
        usages = []
        for chunk in client.completions.create(**arguments, stream=True, stream_options={"include_usage": True}):
            usages.append(chunk.usage)
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
                if choice.logprobs is not None:
                    for name, column in choice.logprobs.model_dump().items():
                        tables[choice.index].setdefault(name, []).extend(column)
        assert texts == [choice.text for choice in whole.choices]
        assert reasons == [choice.finish_reason for choice in whole.choices]
        assert usages[:-1] == [None] * (len(usages) - 1)
        assert whole.usage is not None
        assert usages[-1].completion_tokens == whole.usage.completion_tokens
        if logprobs is not None:
            for table, choice in zip(tables, whole.choices, strict=True):
                assert choice.logprobs is not None
                assert table == choice.logprobs.model_dump()

    def test_token_ids_and_truncation(self, client: OpenAI, model: Model) -> None:
        got = client.completions.create(
            model=NAME, prompt="hello", temperature=0, max_tokens=3,
            extra_body={"return_token_ids": True, "truncate_prompt_tokens": 2, "prompt_logprobs": 0},
        ).choices[0].model_dump()  # fmt: skip
        prompt = model.tokenizer.encode("lo")
        assert got["prompt_token_ids"] == prompt
        assert got["token_ids"] == list(alone(model, prompt, max_tokens=3, ignore_eos=False).outputs[0].token_ids)
        assert got["prompt_logprobs"][0] is None
        assert list(got["prompt_logprobs"][1]) == [str(prompt[1])]


class TestChat:
    """``/v1/chat/completions``."""

    def test_answer_is_that_of_the_python_api(self, client: OpenAI, model: Model) -> None:
        want = model.chat(CHAT, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))[0]
        got = client.chat.completions.create(
            model=NAME, messages=CHAT, temperature=0, max_completion_tokens=12, extra_body={"ignore_eos": True}
        )
        assert got.choices[0].message.content == want.outputs[0].text
        assert got.choices[0].message.role == "assistant"
        assert got.usage is not None
        assert got.usage.prompt_tokens == len(want.prompt_token_ids)
        parts = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, CHAT[1]]
        same = client.chat.completions.create(model=NAME, messages=parts, **GREEDY)  # type: ignore[arg-type]
        assert same.choices[0].message.content == want.outputs[0].text

    def test_stream_with_logprobs(self, client: OpenAI) -> None:
        arguments: dict[str, Any] = {"model": NAME, "messages": CHAT, "n": 2, "seed": 5, "temperature": 1}
        arguments |= {"max_tokens": 15, "logprobs": True, "top_logprobs": 2}
        whole = client.chat.completions.create(**arguments)
        texts, tables, roles = ["", ""], [[], []], [[], []]  # type: ignore[var-annotated]
        for chunk in client.chat.completions.create(**arguments, stream=True):
            assert chunk.object == "chat.completion.chunk"
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                roles[choice.index] += [choice.delta.role] if choice.delta.role else []
                tables[choice.index] += choice.logprobs.content or [] if choice.logprobs else []
        assert texts == [choice.message.content for choice in whole.choices]
        assert roles == [["assistant"], ["assistant"]]
        assert tables == [choice.logprobs.content for choice in whole.choices]  # type: ignore[union-attr]
        assert all(len(entry.top_logprobs) == 2 for entry in tables[0])

    def test_continuing_the_final_message(self, client: OpenAI, model: Model) -> None:
        messages: Any = [CHAT[1], {"role": "assistant", "content": "Once"}]
        want = model.chat(
            messages,
            SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
            add_generation_prompt=False,
            continue_final_message=True,
        )[0].outputs[0]
        got = client.chat.completions.create(
            model=NAME, messages=messages, temperature=0, max_tokens=12,
            extra_body={"ignore_eos": True, "continue_final_message": True},
        )  # fmt: skip
        assert got.choices[0].message.content == want.text

    def test_json_schema(self, client: OpenAI, model: Model) -> None:
        schema = {
            "type": "object",
            "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}, "b": {"enum": ["x", "yy"]}},
            "required": ["n", "b"],
            "additionalProperties": False,
        }
        form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
        for stream in (False, True):
            got: Any = client.chat.completions.create(
                model=NAME, messages=CHAT, response_format=form, max_tokens=200, seed=3, n=2, stream=stream,
                logit_bias={str(model.tokenizer.encode(blank)[0]): -100 for blank in " \n\r\t"},
            )  # fmt: skip
            texts = ["", ""]
            if stream:
                for chunk in got:
                    texts[chunk.choices[0].index] += chunk.choices[0].delta.content
            else:
                texts = [choice.message.content for choice in got.choices]
                assert [choice.finish_reason for choice in got.choices] == ["stop", "stop"]
            for text in texts:
                value = json.loads(text)
                assert set(value) == {"n", "b"}
                assert 0 <= value["n"] <= 99
                assert value["b"] in ("x", "yy")

    def test_json_object(self, client: OpenAI, model: Model) -> None:
        end = model.tokenizer.encode("}")[0]
        got = client.chat.completions.create(
            model=NAME, messages=CHAT, response_format={"type": "json_object"}, max_tokens=50, temperature=0,
            logit_bias={str(end): 100},
        )  # fmt: skip
        assert got.choices[0].message.content == "{}"

    def test_tools_reach_the_template_or_are_refused(self, client: OpenAI) -> None:
        tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        with pytest.raises(BadRequestError, match="would ignore 'tools'"):
            client.chat.completions.create(model=NAME, messages=CHAT, tools=tools, **GREEDY)
        client.chat.completions.create(model=NAME, messages=CHAT, tools=tools, tool_choice="none", **GREEDY)

    def test_without_a_limit_the_context_is_filled(self, server: TestServer) -> None:
        body = {"messages": CHAT, "temperature": 0, "ignore_eos": True}
        assert server.post("/v1/chat/completions", body).json()["usage"]["total_tokens"] == 512


class TestOtherRoutes:
    """Everything else."""

    def test_models(self, client: OpenAI) -> None:
        (card,) = client.models.list().data
        assert card.id == NAME
        assert card.model_extra is not None
        assert card.model_extra["max_model_len"] == 512
        assert client.models.retrieve(NAME) == card
        with pytest.raises(NotFoundError, match="'other' is not served"):
            client.models.retrieve("other")

    def test_tokenize_and_back(self, server: TestServer, model: Model) -> None:
        text = "naïve 水"
        got = server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
        assert got["tokens"] == model.tokenizer.encode(text)
        assert (got["count"], got["max_model_len"]) == (len(got["tokens"]), 512)
        assert len(got["token_strs"]) == got["count"]
        assert server.post("/detokenize", {"tokens": got["tokens"]}).json() == {"prompt": text}
        chat = server.post("/tokenize", {"messages": CHAT}).json()
        assert chat["tokens"] == model.encode_prompt(CHAT)

    def test_generate(self, server: TestServer, model: Model) -> None:
        want = alone(model, "abc", max_tokens=6, ignore_eos=False).outputs[0]
        parameters = {"max_new_tokens": 6, "do_sample": False, "details": True}
        got = server.post("/generate", {"inputs": "abc", "parameters": parameters}).json()
        assert got["generated_text"] == want.text
        assert got["details"]["generated_tokens"] == len(want.token_ids)
        assert [token["id"] for token in got["details"]["tokens"]] == list(want.token_ids)
        for reply in (
            server.post("/generate_stream", {"inputs": "abc", "parameters": parameters}),
            server.post("/generate", {"inputs": "abc", "parameters": parameters, "stream": True}),
        ):
            events = reply.events()
            assert [event["token"]["id"] for event in events] == list(want.token_ids)
            assert "".join(event["token"]["text"] for event in events) == want.text
            assert events[-1]["generated_text"] == want.text
            assert events[-1]["details"]["finish_reason"] == "length"
            assert b"[DONE]" not in reply.body
        full = server.post("/generate", {"inputs": "abc", "parameters": {"return_full_text": True}}).json()
        assert full["generated_text"].startswith("abc")
        digits = {"grammar": {"type": "regex", "value": "[0-9]{3}"}}
        assert server.post("/generate", {"inputs": "x", "parameters": digits}).json()["generated_text"].isdigit()

    def test_health_version_and_unknown_paths(self, server: TestServer) -> None:
        assert server.get("/health").status == 200
        assert set(server.get("/version").json()) == {"version"}
        assert server.get("/v1/embeddings").error()["type"] == "not_found_error"
        assert server.get("/v1/completions").status == 405
        assert server.get("/health", X_Request_Id="my-id").headers["x-request-id"] == "my-id"
        assert server.get("/health", X_Request_Id='my id"').headers["x-request-id"] != 'my id"'

    def test_metrics_carry_the_names_of_dashboards(self, client: OpenAI, server: TestServer) -> None:
        def value(name: str, labels: str = "") -> float:
            lines = server.get("/metrics").body.decode().splitlines()
            found = [line for line in lines if line.startswith(f'vllm:{name}{{{labels}model_name="{NAME}"}}')]
            assert len(found) == 1, name
            return float(found[0].split()[-1])

        names = ("prompt_tokens_total", "generation_tokens_total", "time_to_first_token_seconds_count")
        before = {name: value(name) for name in names}
        finished = value("request_success_total", 'finished_reason="length",')
        client.completions.create(model=NAME, prompt="a metric", **GREEDY)
        assert {name: value(name) - before[name] for name in names} == dict(zip(names, (8, 12, 1), strict=True))
        assert value("request_success_total", 'finished_reason="length",') == finished + 1
        for name in (
            "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
            "prefix_cache_hits_total", "num_preemptions_total", "inter_token_latency_seconds_count",
            "e2e_request_latency_seconds_sum", "request_queue_time_seconds_sum",
        ):  # fmt: skip
            value(name)


BAD_COMPLETIONS: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "prompt is None, expected text", "prompt"),
    ({"prompt": []}, "prompt is \\[\\], expected text", "prompt"),
    ({"prompt": ["a"] * 257}, "257 prompts, expected at most 256", "prompt"),
    ({"prompt": [1, "a"]}, "expected text or a list of token ids", "prompt"),
    ({"prompt": [999]}, "token 999 at position 0", None),
    ({"prompt": [[]]}, "the prompt is empty", None),
    ({"prompt": "a" * 600}, "600 tokens, expected less than max_model_len 512", None),
    ({"prompt": "\ud800"}, "lone surrogate", "prompt"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0, expected an integer from 1", "max_tokens"),
    ({"prompt": "a", "max_tokens": 1.5}, "max_tokens is 1.5", "max_tokens"),
    ({"prompt": "a", "temperature": -1}, "temperature is -1", "temperature"),
    ({"prompt": "a", "temperature": "hot"}, "temperature is 'hot'", "temperature"),
    ({"prompt": "a", "temperature": 1e400}, "temperature is inf", "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p is 0", "top_p"),
    ({"prompt": "a", "n": 9}, "n is 9, expected 1 to max_num_seqs 8", "n"),
    ({"prompt": "a", "n": 1 << 40}, "n is ", "n"),
    ({"prompt": "a", "logprobs": 21}, "logprobs is 21, expected an integer from 0 to 20", "logprobs"),
    ({"prompt": "a", "stop": list("abcde")}, "stop has 5 elements, expected at most 4", "stop"),
    ({"prompt": "a", "stop": [""]}, "stop", "stop"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias has the key 'x'", "logit_bias"),
    ({"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias of 5 is 101", "logit_bias"),
    ({"prompt": "a", "logit_bias": {"9999": 1}}, "logit_bias holds token 9999", "logit_bias"),
    ({"prompt": "a", "repetition_penalty": 1e-40}, "repetition_penalty is", "repetition_penalty"),
    ({"prompt": "a", "top_pp": 1}, "did you mean 'top_p'", "top_pp"),
    ({"prompt": "a", "suffix": "end"}, "suffix is 'end', but this server does not offer it", "suffix"),
    ({"prompt": "a", "best_of": 2}, "best_of is 2", "best_of"),
    ({"prompt": "a", "use_beam_search": True}, "use_beam_search is True", "use_beam_search"),
    ({"prompt": "a", "stream": False, "stream_options": {}}, "stream_options needs stream", "stream_options"),
    ({"prompt": "a", "stream": "yes"}, "stream is 'yes', expected true or false", "stream"),
    ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format.type is 'xml'", "response_format"),
    ({"prompt": "a", "response_format": {"type": "json_schema"}}, "has no schema", "response_format"),
    ({"prompt": "a", "structured_outputs": {"regex": "("}}, "the regex cannot be used", "structured_outputs"),
    ({"prompt": "a", "structured_outputs": {"json": {"type": "zzz"}}}, "cannot be used", "structured_outputs"),
    ({"prompt": "a", "structured_outputs": {"regex": "a", "choice": ["b"]}}, "expected one of", None),
    ({"prompt": "a", "structured_outputs": {"regex": "a" * 70000}}, "70000 characters", "structured_outputs"),
    ({"prompt": "a", "structured_outputs": {"regex": "(a{1000}){1000}"}}, "too many|cannot", "structured_outputs"),
    ({"prompt": "a", "structured_outputs": {"choice": ["b"]}, "min_tokens": 2}, "min_tokens and ignore_eos", None),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message", "param"), BAD_COMPLETIONS)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_completions_are_refused(
    server: TestServer, body: dict[str, Any], message: str, param: str | None, stream: bool
) -> None:
    reply = server.post("/v1/completions", {"stream": stream, **body})
    assert reply.status == 400, reply.body
    error = reply.error()
    assert error["type"] == "invalid_request_error"
    assert re.search(message, error["message"]), error["message"]
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "messages: expected 1 to 4096 messages, found none"),
        ({"messages": "hi"}, "messages is 'hi', expected a list of objects"),
        ({"messages": [{"content": "x"}]}, "messages[0].role is None"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content is 5"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "this model reads text"),
        ({"messages": CHAT, "max_tokens": 3, "max_completion_tokens": 4}, "differ"),
        ({"messages": CHAT, "top_logprobs": 3}, "top_logprobs needs logprobs"),
        ({"messages": CHAT, "tool_choice": "required"}, "tool_choice is 'required'"),
        ({"messages": CHAT, "chat_template": "{{ 1 }}"}, "chat_template"),
        ({"messages": CHAT, "chat_template_kwargs": {"tokenize": True}}, "would ignore 'tokenize'"),
        ({"messages": CHAT, "chat_template_kwargs": {"messages": []}}, "messages cannot be set here"),
        ({"messages": CHAT, "reasoning_effort": "high"}, "reasoning_effort is 'high'"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "expected less than max_model_len"),
    ],
)
def test_bad_chats_are_refused(server: TestServer, body: dict[str, Any], message: str) -> None:
    reply = server.post("/v1/chat/completions", body)
    assert reply.status == 400, reply.body
    assert message in reply.error()["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is not valid JSON"),
        (b"[]", "is a JSON list, expected an object"),
        (b'{"prompt": "a", "prompt": "b"}', "the key 'prompt' twice"),
        (b'{"prompt": ' + b"[" * 100000, "is not valid JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate", "/tokenize", "/detokenize"])
def test_bodies_that_are_no_objects(server: TestServer, path: str, body: bytes, message: str) -> None:
    reply = server.post(path, body)
    assert reply.status == 400, reply.body
    assert message in reply.error()["message"]


def test_other_models_and_types(server: TestServer, client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt="x")
    assert isinstance(caught.value, APIError)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert server.post("/v1/completions", {"prompt": "x"}, Content_Type="text/plain").status == 415
    extras = {"prompt": "x", "max_tokens": 1, "user": "u", "metadata": {"a": "b"}, "store": False}
    assert server.post("/v1/completions", extras).status == 200
