"""`LlmBoostForCausalLM`: the model of a MindFormers predict run, driven by its loop or by llm_boost's engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llm_boost._suggest import unknown_name
from llm_boost.errors import RequestError
from llm_boost.integrations.mindspore.config import LlmBoostConfig
from llm_boost.integrations.mindspore.register import LlmBoostRegister
from llm_boost.integrations.mindspore.tensors import to_numpy
from llm_boost.sampling_params import SamplingParams
from llm_boost.text import Tokenizer

_GENERATION_KEYS = (
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "eos_token_id",
    "pad_token_id",
)


class Streamer(Protocol):
    """What takes the tokens of a generation as they come, as the streamers of MindFormers do."""

    def put(self, value: Any) -> None:
        """Takes new tokens; the prompt's come first."""

    def end(self) -> None:
        """Says that no more will come."""


class LlmBoostForCausalLM:
    """A causal language model that runs on a boost.

    There are two ways to drive it. `generate` and `chat` use llm_boost's own scheduler. A framework that owns scheduler
    and block tables, as MindFormers' generation loop does, calls for every step `add_flags`,
    `prepare_inputs_for_generation` and the model itself. The two share one cache: finish the one before the other.

    Attributes:
        config: The config.
        llm_boost: The boost; a checkpoint's parameters go to its `set_weights`.
        is_first_iteration: Whether the next step brings prompts.

    Example:
        >>> network = LlmBoostForCausalLM(LlmBoostConfig(llm_backend="CPU", boost_model_name="Llama"))
        >>> network.llm_boost.set_weights(parameters)  # doctest: +SKIP
        >>> network.generate([[1, 306, 5360]], max_new_tokens=8)  # doctest: +SKIP
    """

    config_class = LlmBoostConfig

    def __init__(self, config: Any) -> None:
        """Makes the boost that a `LlmBoostConfig`, or an object with its attributes, names.

        Raises:
            ConfigError: The config cannot be used.
        """
        self.config = config
        self.is_first_iteration = True
        self.llm_boost = LlmBoostRegister.get_instance(config.llm_backend, config.boost_model_name, config=config)
        self.llm_boost.init()
        self._has_kvcache = False

    # -- Steps ----------------------------------------------------------------------------------------------------

    def add_flags(self, is_first_iteration: bool) -> None:
        """Says whether the next step brings prompts (True) or one token a sequence (False)."""
        self.is_first_iteration = is_first_iteration

    def add_flags_recursive(self, is_first_iteration: bool) -> None:
        """The same as `add_flags`: there are no cells inside."""
        self.add_flags(is_first_iteration)

    def set_dynamic_inputs(self, **_: object) -> None:
        """Nothing: every shape is dynamic."""

    def prepare_inputs_for_predict_layout(self, input_ids: object, **_: object) -> object:
        """The input as it is: one device needs no layout."""
        return input_ids

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        *,
        valid_length_each_example: Any,
        block_tables: Any,
        slot_mapping: Any,
        prefill: bool,
        origin_inputs: Any = None,
        position_ids: Any = None,
        prefill_head_indices: Any = None,
        **_: object,
    ) -> dict[str, Any]:
        """Makes the arguments of a call from what the generation loop has. S sequences.

        Args:
            input_ids: [S, length] all tokens so far, padded; or one new token for each sequence.
            valid_length_each_example: [S] tokens of each sequence, without padding.
            block_tables: [S, width] block numbers, -1 where unused.
            slot_mapping: The slot of every token of `input_ids`, or of those that are computed.
            prefill: Whether this is the step of the prompts.
            origin_inputs: [S, length] the prompts as they were given, which replace `input_ids` in that step if the
                config says ``is_dynamic``.
            position_ids: Positions of the tokens; None for 0, 1, 2 and so on.
            prefill_head_indices: Tokens whose logits are wanted; None for the last of each prompt.
        """
        valid = to_numpy(valid_length_each_example).reshape(-1)
        if prefill and getattr(self.config, "is_dynamic", False) and origin_inputs is not None:
            input_ids = origin_inputs
        tokens = to_numpy(input_ids)
        if not prefill and tokens.size != len(valid):
            tokens = tokens.reshape(len(valid), -1)[np.arange(len(valid)), valid - 1]
        inputs = {
            "input_ids": tokens,
            "position_ids": position_ids,
            "block_tables": block_tables,
            "slot_mapping": slot_mapping,
            "batch_valid_length": valid,
            "lm_head_indices": prefill_head_indices,
        }
        return {"llm_boost_inputs": inputs}

    def construct(self, *, llm_boost_inputs: Mapping[str, Any], **_: object) -> Any:
        """Computes one step: logits [S, vocab_size]. See `LlmBoost.forward` for arguments and errors."""
        if not self._has_kvcache:
            self.llm_boost.set_kvcache()
            self._has_kvcache = True
        self.llm_boost.add_flags(is_first_iteration=self.is_first_iteration)
        return self.llm_boost.forward(llm_boost_inputs)

    __call__ = construct

    # -- Text -----------------------------------------------------------------------------------------------------

    def generate(
        self,
        input_ids: Any,
        *,
        attention_mask: npt.ArrayLike | None = None,
        streamer: Streamer | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> list[npt.NDArray[np.int32]]:
        """Completes prompts, all at once.

        Args:
            input_ids: The tokens of one prompt or of several: lists, which may differ in length, or an array
                [S, length].
            attention_mask: [S, length] 1 where a token of an array is real. Without it, ``pad_token_id`` at the end of
                a row is padding, unless the prompts are lists of different lengths.
            streamer: Gets the prompt, then each token; for a single prompt.
            seed: Makes samples repeatable; None for fresh ones.
            **options: Of MindFormers' GenerationConfig, in place of the config's: max_length (most tokens of prompt and
                output), max_new_tokens, which comes before it, min_length, min_new_tokens, do_sample, temperature,
                top_k, top_p, repetition_penalty, eos_token_id, pad_token_id. They have the meaning that Hugging Face
                transformers give them.

        Returns:
            Prompt and output of each, with the token that ended it.

        Raises:
            RequestError: A prompt or an option cannot be served.
        """
        if unknown := [name for name in options if name not in _GENERATION_KEYS]:
            raise RequestError(unknown_name("option of generate", unknown[0], _GENERATION_KEYS))
        options = {name: value for name, value in options.items() if value is not None}
        for name in ("max_length", "max_new_tokens", "min_length", "min_new_tokens"):
            value = options.get(name, 0)
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 0:
                raise RequestError(f"{name} is {value!r:.40}, expected a number of tokens")
        prompts = _prompts(input_ids, attention_mask, self._option(options, "pad_token_id"))
        params = [self._sampling_params(options, len(prompt), seed) for prompt in prompts]
        if streamer is None:
            results = self.llm_boost.model.generate(prompts, params)
            return [np.asarray([*r.prompt_token_ids, *r.outputs[0].token_ids], np.int32) for r in results]
        if len(prompts) != 1:
            raise RequestError(
                f"a streamer was given for {len(prompts)} prompts, expected one: it cannot tell them apart"
            )
        tokens = list(prompts[0])
        streamer.put(np.asarray([tokens], np.int32))
        for piece in self.llm_boost.model.stream(prompts[0], params[0]):
            tokens += piece.token_ids
            for token in piece.token_ids:
                streamer.put(np.asarray([token], np.int32))
        streamer.end()
        return [np.asarray(tokens, np.int32)]

    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: Sequence[Mapping[str, str]] | None = None,
        *,
        system: str | None = None,
        max_length: int = 512,
        do_sample: bool = True,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        **options: Any,
    ) -> tuple[str, list[dict[str, str]]]:
        """Answers a message.

        Args:
            tokenizer: llm_boost's, or one with the methods of Hugging Face's; it has the chat template.
            query: What the user says.
            history: The messages before; not changed.
            system: A system message, where there is no history.
            max_length: See `generate`, as all that follows.
            do_sample: Whether to sample.
            temperature: Of samples.
            top_k: Of samples.
            top_p: Of samples.
            repetition_penalty: Above 1 avoids repetition.
            **options: Further options of `generate`.

        Returns:
            The answer, and the history with the query and the answer.
        """
        messages = [dict(message) for message in history or []]
        if system is not None and not messages:
            messages.append({"role": "system", "content": system})
        messages.append({"role": "user", "content": query})
        own = isinstance(tokenizer, Tokenizer)
        text = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, **({} if own else {"tokenize": False})
        )
        prompt = tokenizer.encode(text, add_special_tokens=False)
        (tokens,) = self.generate(
            [prompt],
            max_length=max_length,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            **options,
        )
        answer = tokenizer.decode(tokens[len(prompt) :].tolist(), skip_special_tokens=True)
        return answer, [*messages, {"role": "assistant", "content": answer}]

    def _option(self, options: Mapping[str, Any], name: str) -> Any:
        return options[name] if name in options else getattr(self.config, name, None)

    def _sampling_params(self, options: Mapping[str, Any], prompt_length: int, seed: int | None) -> SamplingParams:
        seq_length = self.config.seq_length
        limit = min(options.get("max_length", self._option(options, "max_decode_length") or seq_length), seq_length)
        most = options.get("max_new_tokens")
        if most is None and "max_length" not in options:
            most = getattr(self.config, "max_new_tokens", None)
        if most is not None:
            limit = min(prompt_length + most, seq_length)
        if limit <= prompt_length:
            raise RequestError(f"a prompt has {prompt_length} tokens, but max_length is {limit}; raise it")
        least = max(options.get("min_length", 0) - prompt_length, 0)
        if "min_length" not in options or "min_new_tokens" in options:
            least = self._option(options, "min_new_tokens") or least
        values: dict[str, Any] = {"do_sample": bool(self._option(options, "do_sample"))}
        for name in ("temperature", "top_k", "top_p", "repetition_penalty"):
            if (value := self._option(options, name)) is not None:
                values[name] = value
        if "eos_token_id" in options:
            eos = options["eos_token_id"]
            values |= {"ignore_eos": True, "stop_token_ids": list(eos) if isinstance(eos, (list, tuple)) else [eos]}
        return SamplingParams(max_tokens=limit - prompt_length, min_tokens=least, seed=seed, **values)


def _prompts(input_ids: Any, attention_mask: npt.ArrayLike | None, pad_token_id: int | None) -> list[list[int]]:
    """The tokens of each prompt without padding."""
    rows: Any = input_ids if isinstance(input_ids, (list, tuple)) else to_numpy(input_ids)
    if not isinstance(rows, (list, tuple)) and not rows.ndim:
        raise RequestError(f"input_ids is {input_ids!r:.40}, expected the tokens of a prompt, or of several")
    if len(rows) and isinstance(rows[0], (int, np.integer)):
        rows = [rows]
    prompts = [to_numpy(row).tolist() for row in rows]
    if attention_mask is not None:
        mask = np.asarray(attention_mask).reshape(len(prompts), -1)
        return [
            [token for token, real in zip(row, flags, strict=True) if real]
            for row, flags in zip(prompts, mask, strict=True)
        ]
    if len({len(prompt) for prompt in prompts}) > 1:
        return prompts
    for number, prompt in enumerate(prompts):
        while prompt and prompt[-1] == pad_token_id:
            prompt.pop()
        if not prompt:
            raise RequestError(f"prompt {number} is empty or all padding ({pad_token_id}); give an attention_mask")
    return prompts
