"""`Model`: load a model, generate text with it, or drive it step by step."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from llm_boost import _core
from llm_boost._request import RunningRequest
from llm_boost._suggest import unknown_name
from llm_boost.checkpoint import read_checkpoint
from llm_boost.errors import ConfigError, RequestError, TokenizerError
from llm_boost.hub import resolve_model
from llm_boost.model_config import ModelConfig
from llm_boost.model_source import ModelSource, source_of_checkpoint
from llm_boost.outputs import RequestOutput, TextPiece
from llm_boost.run_config import RunConfig, load_config
from llm_boost.run_config.resolve import source_of_run
from llm_boost.sampling_params import SamplingParams
from llm_boost.structured_outputs import Grammar, GrammarCompiler, StructuredOutputsParams
from llm_boost.text import Tokenizer

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]

# How long a wait for the core lasts before Python looks for signals again, in milliseconds.
_POLL_MS = 50
# New tokens where neither the caller nor the model's generation_config.json sets a limit.
_DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What became of a model's options, and what it takes.

    Attributes:
        backend: The backend in words, with its instruction set and threads.
        isa: Instruction set level of the CPU kernels.
        activation_dtype: Type of matrix product inputs and of the KV cache.
        block_size: Tokens of a KV cache block; there are `num_blocks` of them.
        max_num_seqs: Most sequences that are computed at once.
        max_model_len: Most tokens of a sequence, prompt and output.
        max_num_batched_tokens: Most tokens that are computed in one step.
        weight_bytes: Memory of the packed weights.
        cache_bytes: Address space of the KV cache; memory is taken as it is used.
        arena_bytes: Memory of intermediate results.
    """

    backend: str
    isa: str
    activation_dtype: str
    num_threads: int
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    weight_bytes: int
    cache_bytes: int
    arena_bytes: int


class Model:
    """A loaded model. Any number of threads may call its methods at the same time.

    Example:
        >>> from llm_boost import Model, SamplingParams
        >>> model = Model.from_pretrained("smollm2-135m-instruct")  # doctest: +SKIP
        >>> model.generate("The sea is", SamplingParams(temperature=0))[0].outputs[0].text  # doctest: +SKIP
        ' a vast and mysterious place, ...'
    """

    def __init__(self, core: _core.LoadedModel, config: ModelConfig, tokenizer: Tokenizer | None) -> None:
        """Wraps a loaded core; use `from_pretrained`."""
        self._loaded: _core.LoadedModel | None = core
        self.config = config
        self._tokenizer = tokenizer
        self._grammars: GrammarCompiler | None = None  # made when first needed
        self._grammars_lock = threading.Lock()

    @staticmethod
    def from_pretrained(
        path: str | Path | RunConfig,
        *,
        backend: str = "auto",
        dtype: str = "auto",
        activation_dtype: str = "auto",
        num_threads: int | None = None,
        block_size: int | None = None,
        num_blocks: int | None = None,
        max_num_seqs: int | None = None,
        max_model_len: int | None = None,
        max_num_batched_tokens: int | None = None,
        enable_prefix_caching: bool = True,
        use_tqdm: bool = True,
        **unknown: object,
    ) -> Model:
        """Loads a model.

        Args:
            path: A model directory, or a ``.safetensors`` or ``.ckpt`` file in one; the name of a model that
                ``llm-boost pull`` has fetched; or a run config: a YAML file, or what `load_config` made of one, which
                gives the options that are not given here. The weights may be stored as Hugging Face, MindSpore or
                MindFormers write them, fused or not.
            backend: "auto" for the best there is, or its name.
            dtype: Type of the weights: "auto" as stored, "bfloat16", "float16" or "float32".
            activation_dtype: Type of matrix product inputs and of the KV cache: "bfloat16", "float32", or "auto" for
                bfloat16 where all weights are and float32 otherwise.
            num_threads: Threads to compute with; None for as many as the affinity mask and the CPU quota allow.
            block_size: Tokens of a KV cache block, a multiple of 16 on the CPU.
            num_blocks: Blocks of the KV cache; None to size it from the free memory.
            max_num_seqs: Most sequences that are computed at once.
            max_model_len: Most tokens of a sequence; None for what the model was trained for and the cache holds.
            max_num_batched_tokens: Most tokens of a step; longer prompts are computed in chunks.
            enable_prefix_caching: Reuse the cache of prompts that start alike.
            use_tqdm: Show a progress bar when loading takes longer than a second.
            **unknown: Anything else is an error that names the nearest option.

        Raises:
            ConfigError: The model's config or an option cannot be used.
            CheckpointError: The weights are damaged or do not fit the config.
            TokenizerError: The tokenizer's files are malformed.
            BackendError: The backend is not available.
        """
        values = {
            "num_threads": num_threads,
            "block_size": block_size,
            "num_blocks": num_blocks,
            "max_num_seqs": max_num_seqs,
            "max_model_len": max_model_len,
            "max_num_batched_tokens": max_num_batched_tokens,
        }
        if unknown:
            known = [*values, "backend", "dtype", "activation_dtype", "enable_prefix_caching", "use_tqdm"]
            raise ConfigError(unknown_name("option of from_pretrained", next(iter(unknown)), known))
        source = _find_source(path, backend)
        given = {name: _positive(name, value) for name, value in values.items() if value is not None}
        named = {"backend": backend, "dtype": dtype, "activation_dtype": activation_dtype}
        options = _core.EngineOptions()
        options.enable_prefix_caching = enable_prefix_caching
        options.eos_token_ids = list(source.config.eos_token_ids)
        explicit = given | {name: value for name, value in named.items() if value != "auto"}
        for name, value in {**source.options, **explicit}.items():
            setattr(options, name, value)
        max_positions = options.max_model_len or source.config.max_position_embeddings
        if max_positions > source.longest_context:
            raise ConfigError(
                f"max_model_len is {max_positions}, but {source.checkpoint} was trained for {source.longest_context} "
                "tokens"
            )
        with (
            ThreadPoolExecutor(1) as beside,  # while the weights are packed
            _loading_bar(source.checkpoint.name, enabled=use_tqdm) as options.on_progress,
        ):
            tokenizer = beside.submit(source.load_tokenizer)
            weights = read_checkpoint(source.checkpoint, source.config)
            core = _core.LoadedModel(source.config.to_core(max_positions), weights, options)
            model = Model(core, source.config, tokenizer.result())
        _core.return_free_memory()  # 30 MB behind a tokenizer of 49,000 tokens
        return model

    # -- Text -----------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Completes prompts, all at once.

        Args:
            prompts: A text, the token ids of a prompt, the messages of a chat, or a list of any of these.
            sampling_params: For all prompts, or one for each; None for what the model's authors recommend.
            use_tqdm: Show a progress bar over the prompts.

        Returns:
            One result a prompt, in order.

        Raises:
            RequestError: A prompt or parameter cannot be served; nothing is generated then.
            TokenizerError: The model has no tokenizer, and a prompt is not given as token ids.
            ChatTemplateError: Messages cannot be rendered.

        Interrupting it (Ctrl-C) cancels what is left and leaves the model usable.
        """
        prompt_list = _as_prompt_list(prompts)
        params_list = _as_params_list(sampling_params, len(prompt_list))
        requests = [self._prepare(prompt, params) for prompt, params in zip(prompt_list, params_list, strict=True)]
        with (
            _Submission(self._core, requests) as submission,
            tqdm(total=len(requests), unit="prompt", disable=not use_tqdm) as bar,
        ):
            for request, _ in submission.pieces():
                bar.update(request.finished)
            return submission.results()

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[TextPiece]:
        """Completes one prompt and yields pieces of text as they become final.

        Ending the iteration early cancels the request. See `generate` for arguments and errors.

        Example:
            >>> for piece in model.stream("Once upon a time"):  # doctest: +SKIP
            ...     print(piece, end="", flush=True)
        """
        with _Submission(self._core, [self._prepare(prompt, sampling_params)]) as submission:
            for _, piece in submission.pieces():
                yield piece

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: object,
    ) -> list[RequestOutput]:
        """Answers a chat, or several: `generate` after the model's chat template.

        Args:
            messages: The messages of one chat, ``{"role": ..., "content": ...}``, or a list of chats.
            sampling_params: See `generate`.
            use_tqdm: See `generate`.
            tools: Tool definitions for the template.
            add_generation_prompt: End with the beginning of an assistant's message.
            continue_final_message: Let the model continue the last message instead.
            **template_kwargs: Further variables of the template.
        """
        chats = messages if messages and not isinstance(messages[0], Mapping) else [messages]
        tokenizer = self.tokenizer
        options: dict[str, Any] = {
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **template_kwargs,
        }
        rendered = [tokenizer.apply_chat_template(cast("Sequence[Message]", chat), **options) for chat in chats]
        prompts = [tokenizer.encode(text, add_special_tokens=False) for text in rendered]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def default_sampling_params(self, num_prompt_tokens: int = 0) -> SamplingParams:
        """What generation_config.json or the run config recommends; greedy where it does not ask for sampling.

        Args:
            num_prompt_tokens: Tokens of the prompt, which count where a run config's max_decode_length is the limit.

        Raises:
            RequestError: The prompt alone has as many tokens as max_decode_length allows.
        """
        defaults = self.config.generation_defaults
        names = (
            "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "min_new_tokens", "seed",
        )  # fmt: skip
        values = {name: defaults[name] for name in names if defaults.get(name) is not None}
        max_length = defaults.get("max_decode_length")
        if max_length is not None and "max_new_tokens" not in values:
            if num_prompt_tokens >= max_length:
                raise RequestError(
                    f"the prompt has {num_prompt_tokens} tokens, but max_decode_length, which counts prompt and "
                    f"output, is {max_length}"
                )
            values["max_new_tokens"] = max_length - num_prompt_tokens
        return SamplingParams(
            **{"max_new_tokens": _DEFAULT_NEW_TOKENS, "do_sample": defaults.get("do_sample", False), **values}
        )

    # -- Steps ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        *,
        token_ids: npt.ArrayLike,
        positions: npt.ArrayLike,
        slots: npt.ArrayLike,
        seq_begin: npt.ArrayLike,
        context_len: npt.ArrayLike,
        block_table: npt.ArrayLike,
        logit_rows: npt.ArrayLike,
    ) -> npt.NDArray[np.float32]:
        """Computes one step for a caller who owns scheduling and block tables.

        T tokens of S sequences are computed: one (decode), or a prompt, or a part of it, for each sequence. The
        caller's blocks are valid until the next `generate` or `stream`, which use the same cache.

        Args:
            token_ids: [T] tokens, those of a sequence one after another.
            positions: [T] position of each token in its sequence.
            slots: [T] where its key and value go: block number * block_size + position % block_size.
            seq_begin: [S + 1] where the tokens of each sequence begin; the last element is T.
            context_len: [S] tokens of the sequence that are in the cache after this step.
            block_table: [S, ceil(max_model_len / block_size)] block numbers in order of position, -1 where unused.
            logit_rows: [R] ascending indices of the tokens whose logits are wanted.

        Returns:
            Logits [R, vocab_size].

        Raises:
            RequestError: The arrays contradict each other or the model, or requests are being served.
        """
        arrays = (token_ids, positions, slots, seq_begin, context_len, block_table, logit_rows)
        names = ("token_ids", "positions", "slots", "seq_begin", "context_len", "block_table", "logit_rows")
        return self._core.forward(*(_as_int32(name, array) for name, array in zip(names, arrays, strict=True)))

    # -- State ----------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError when its directory has none."""
        if self._tokenizer is None:
            raise TokenizerError("the model's directory has no tokenizer; give prompts as token ids")
        return self._tokenizer

    def info(self) -> ModelInfo:
        """What became of the options, and memory."""
        return ModelInfo(**self._core.info())

    def stats(self) -> dict[str, int]:
        """Counters of the engine: sequences, blocks, tokens, preemptions, prefix cache."""
        return self._core.stats()

    def close(self) -> None:
        """Cancels everything and frees the model's memory."""
        self._loaded = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def core(self) -> _core.LoadedModel:
        """The loaded model in the core, for those who submit requests themselves. Raises RequestError when closed."""
        return self._core

    @property
    def _core(self) -> _core.LoadedModel:
        if self._loaded is None:
            raise RequestError("the model is closed; load it again")
        return self._loaded

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The token ids that `generate` computes for a prompt, in whichever form it is given."""
        return list(self._encode(prompt)[1])

    def _encode(self, prompt: Prompt) -> tuple[str | None, Sequence[int]]:
        """The prompt as text, unless it was given as token ids, and its token ids."""
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt)
        if len(prompt) > 0 and isinstance(prompt[0], Mapping):
            text = self.tokenizer.apply_chat_template(cast("Sequence[Message]", prompt))
            return text, self.tokenizer.encode(text, add_special_tokens=False)
        token_ids: list[int] = _as_int32("the prompt", cast("Sequence[int]", prompt)).tolist()
        return None, token_ids

    def _prepare(self, prompt: Prompt, params: SamplingParams | None) -> RunningRequest:
        text, token_ids = self._encode(prompt)
        params = params or self.default_sampling_params(len(token_ids))
        return self.new_request(token_ids, params, text=text)

    def new_request(
        self, token_ids: Sequence[int], params: SamplingParams, *, text: str | None = None
    ) -> RunningRequest:
        """A request that the caller submits and follows itself, as a server does."""
        if params.stop and self._tokenizer is None:
            raise TokenizerError(
                "stop strings need a tokenizer, and the model's directory has none; use stop_token_ids"
            )
        return RunningRequest(text, token_ids, params, self._tokenizer, self._grammar(params.structured_outputs))

    def _grammar(self, wanted: StructuredOutputsParams | None) -> Grammar | None:
        if wanted is None:
            return None
        with self._grammars_lock:
            if self._grammars is None:
                self._grammars = GrammarCompiler(self.tokenizer, self.config.vocab_size, self.config.eos_token_ids)
        return self._grammars.compile(wanted)


class _Submission:
    """Some requests in the core; leaving its context cancels those that have not finished."""

    def __init__(self, core: _core.LoadedModel, requests: Sequence[RunningRequest]) -> None:
        self._core = core
        self._requests = requests
        self._queue = _core.OutputQueue()
        self._by_id: dict[int, RunningRequest] = {}

    def __enter__(self) -> _Submission:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not all(request.finished for request in self._requests):
            self._core.cancel_all(self._queue)

    def pieces(self) -> Iterator[tuple[RunningRequest, TextPiece]]:
        """Submits all requests, or none, and yields what they give until all have finished."""
        self._submit()
        unfinished = len(self._requests)
        while unfinished:
            for event in self._queue.pop(_POLL_MS):
                request = self._by_id[event.request]
                piece = request.take(event)
                if piece is None:
                    continue
                if request.finished:
                    unfinished -= 1
                yield request, piece

    def _submit(self) -> None:
        for request in self._requests:
            request.check(self._core)
        for request in self._requests:
            self._by_id[request.submit(self._core, self._queue)] = request

    def results(self) -> list[RequestOutput]:
        return [request.result(str(request_id)) for request_id, request in self._by_id.items()]


def _as_prompt_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """Tells one prompt from a list of prompts by its first element."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) and not isinstance(prompts, np.ndarray):
        raise RequestError(
            f"prompts is a {type(prompts).__name__}, expected text, token ids, messages, or a list of these"
        )
    if len(prompts) == 0:
        return []
    is_one_prompt = isinstance(prompts[0], (int, np.integer, Mapping))
    return [cast("Prompt", prompts)] if is_one_prompt else cast("Sequence[Prompt]", prompts)


def _as_params_list(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams | None]:
    """Parameters for each prompt; None for the model's own."""
    if params is None or isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, Sequence) or not all(isinstance(item, SamplingParams) for item in params):
        raise RequestError(f"sampling_params is a {type(params).__name__}, expected SamplingParams or a list of them")
    if len(params) != count:
        raise RequestError(f"sampling_params has {len(params)} elements for {count} prompts")
    return params


def _as_int32(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int32]:
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(array.shape, np.int32)
    if array.dtype.kind not in "iu":
        raise RequestError(f"{name} has elements of type {array.dtype}, expected integers")
    if array.min() < np.iinfo(np.int32).min or array.max() > np.iinfo(np.int32).max:
        raise RequestError(f"{name} holds {array.min()} to {array.max()}, expected 32-bit integers")
    return np.ascontiguousarray(array, dtype=np.int32)


def _find_source(path: str | Path | RunConfig, backend: str) -> ModelSource:
    if not isinstance(path, RunConfig):
        if Path(path).suffix not in (".yaml", ".yml") or Path(path).is_dir():
            return source_of_checkpoint(resolve_model(path))
        path = load_config(path)
    return source_of_run(path, backend=backend)


def _positive(name: str, value: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ConfigError(f"{name} is {value!r:.40}, expected a positive integer")
    return value


@contextmanager
def _loading_bar(name: str, *, enabled: bool) -> Iterator[Any]:
    """A progress bar over bytes that appears when loading takes longer than a second."""
    with tqdm(desc=f"loading {name}", unit="B", unit_scale=True, delay=1.0, leave=False, disable=not enabled) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update
