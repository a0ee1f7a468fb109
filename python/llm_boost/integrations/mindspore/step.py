"""From the tensors that a framework passes with each step to a step of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_boost._suggest import unknown_name
from llm_boost.errors import RequestError
from llm_boost.integrations.mindspore.tensors import to_numpy

Ints = npt.NDArray[np.int64]

_INPUTS = (
    "input_ids",
    "position_ids",
    "cos_embed",
    "sin_embed",
    "block_tables",
    "slot_mapping",
    "batch_valid_length",
    "seq_lens",
    "lm_head_indices",
)


@dataclass(frozen=True, slots=True)
class Step:
    """T tokens of S sequences, as `llm_boost.Model.forward` takes them, and the rows of logits that are wanted.

    Attributes:
        token_ids: [T].
        positions: [T].
        slots: [T].
        seq_begin: [S + 1].
        context_len: [S].
        block_table: [S, max_blocks].
        logit_rows: [R] ascending.
    """

    token_ids: Ints
    positions: Ints
    slots: Ints
    seq_begin: Ints
    context_len: Ints
    block_table: Ints
    logit_rows: Ints

    def pieces(self, max_tokens: int, max_sequences: int) -> Iterator[Step]:
        """Cuts the step into ones that the engine has room for; their logits follow one another.

        A prompt may be cut anywhere: the engine's numbers do not depend on it.
        """
        begin, num_tokens = 0, len(self.token_ids)
        while begin < num_tokens:
            first = int(np.searchsorted(self.seq_begin, begin, side="right")) - 1
            first_row = int(np.searchsorted(self.logit_rows, begin))
            limits = [begin + max_tokens, num_tokens]
            limits += self.seq_begin[first + max_sequences :][:1].tolist()
            limits += self.logit_rows[first_row + max_sequences :][:1].tolist()
            end = min(limits)
            last = int(np.searchsorted(self.seq_begin, end))
            context_len = self.context_len[first:last].copy()
            context_len[-1] -= self.seq_begin[last] - end
            rows = self.logit_rows[first_row : int(np.searchsorted(self.logit_rows, end))]
            yield Step(
                self.token_ids[begin:end],
                self.positions[begin:end],
                self.slots[begin:end],
                self.seq_begin[first : last + 1].clip(begin, end) - begin,
                context_len,
                self.block_table[first:last],
                rows - begin,
            )
            begin = end


@dataclass(frozen=True, slots=True)
class FrameworkStep:
    """A step, and where its logits go.

    Attributes:
        step: What is computed; no sequences if all have ended.
        num_rows: R, rows of the result.
        target_rows: Row of the result -> row of the step's logits; -1 where nothing is computed.
    """

    step: Step
    target_rows: Ints

    def run(
        self, forward: Callable[[Step], npt.NDArray[np.float32]], max_tokens: int, max_sequences: int, vocab_size: int
    ) -> npt.NDArray[np.float32]:
        """Computes the step in pieces that fit the engine; returns logits [R, vocab_size]."""
        parts = [forward(piece) for piece in self.step.pieces(max_tokens, max_sequences)]
        logits = np.concatenate([*parts, np.zeros((1, vocab_size), np.float32)])  # the last row is the one at -1
        return logits[self.target_rows]


def read_step(
    inputs: Mapping[str, Any], *, is_first_iteration: bool, block_size: int, max_blocks: int
) -> FrameworkStep:
    """Reads the tensors of a step.

    Args:
        inputs: The tensors by name; see `LlmBoost.forward`.
        is_first_iteration: Whether the sequences bring their prompts, or one token each.
        block_size: Tokens of a block.
        max_blocks: Width of the engine's block tables.

    Raises:
        RequestError: A name is unknown, a tensor is missing, or they contradict each other.
    """
    if unknown := [name for name in inputs if name not in _INPUTS]:
        raise RequestError(unknown_name("input of forward", unknown[0], _INPUTS))
    valid = _valid_lengths(inputs)
    table = _block_table(inputs, len(valid), max_blocks)
    if is_first_iteration:
        return _read_prompts(inputs, valid, table)
    return _read_tokens(inputs, valid, table, block_size)


def _read_prompts(inputs: Mapping[str, Any], valid: Ints, table: Ints) -> FrameworkStep:
    seq_begin = np.concatenate([[0], np.cumsum(valid)])
    positions = np.concatenate([np.arange(length) for length in valid])
    if inputs.get("position_ids") is not None:
        positions = _unpadded(inputs, "position_ids", valid)
    rows = seq_begin[1:] - 1
    if inputs.get("lm_head_indices") is not None:
        rows = _integers(inputs, "lm_head_indices").reshape(-1)
        if rows.size and not 0 <= rows.min() <= rows.max() < valid.sum():
            raise RequestError(
                f"lm_head_indices is {rows.tolist()}, expected tokens 0 to {valid.sum() - 1} of the step"
            )
    logit_rows, target_rows = np.unique(rows, return_inverse=True)
    token_ids, slots = _unpadded(inputs, "input_ids", valid), _unpadded(inputs, "slot_mapping", valid)
    return FrameworkStep(Step(token_ids, positions, slots, seq_begin, valid, table, logit_rows), target_rows)


def _read_tokens(inputs: Mapping[str, Any], valid: Ints, table: Ints, block_size: int) -> FrameworkStep:
    positions = valid - 1
    if inputs.get("position_ids") is not None:
        positions = _of_length(inputs, "position_ids", len(valid))
    token_ids, slots = _of_length(inputs, "input_ids", len(valid)), _of_length(inputs, "slot_mapping", len(valid))
    # MindFormers goes on passing sequences that have ended, for which it has reserved no block.
    column = np.minimum((valid - 1) // block_size, table.shape[1] - 1)
    live = (np.take_along_axis(table, column[:, None], axis=1)[:, 0] >= 0) & (slots >= 0)
    count = int(live.sum())
    step = Step(
        token_ids[live],
        positions[live],
        slots[live],
        np.arange(count + 1),
        valid[live],
        table[live],
        np.arange(count),
    )
    return FrameworkStep(step, np.where(live, np.cumsum(live) - 1, -1))


def _valid_lengths(inputs: Mapping[str, Any]) -> Ints:
    """Tokens of each sequence after this step, [S], which both of two inputs say."""
    given = [
        _integers(inputs, name).reshape(-1) for name in ("batch_valid_length", "seq_lens") if _is_given(inputs, name)
    ]
    if not given:
        raise RequestError("forward got neither batch_valid_length nor seq_lens, expected the length of each sequence")
    if len(given) == 2 and not np.array_equal(given[0], given[1]):
        raise RequestError(f"batch_valid_length is {given[0].tolist()}, but seq_lens is {given[1].tolist()}")
    if not given[0].size or given[0].min() < 1:
        raise RequestError(f"batch_valid_length is {given[0].tolist()}, expected at least one sequence of one token")
    return given[0]


def _block_table(inputs: Mapping[str, Any], num_sequences: int, max_blocks: int) -> Ints:
    """Block tables of the engine's width; what a framework keeps beyond that is never read."""
    table = _integers(inputs, "block_tables")
    if table.ndim != 2 or len(table) != num_sequences:
        raise RequestError(
            f"block_tables has shape {list(table.shape)}, expected a row for each of {num_sequences} sequences"
        )
    fitted = np.full((num_sequences, max_blocks), -1)
    width = min(max_blocks, table.shape[1])
    fitted[:, :width] = table[:, :width]
    return fitted


def _unpadded(inputs: Mapping[str, Any], name: str, valid: Ints) -> Ints:
    """The elements that belong to tokens, [T], of an input with or without padding at the end of each row."""
    values, num_tokens = _integers(inputs, name), int(valid.sum())
    if values.size == num_tokens:
        return values.reshape(-1)
    width, rest = divmod(values.size, len(valid))
    if rest or width < valid.max():
        raise RequestError(
            f"{name} has {values.size} elements, expected {num_tokens} (lengths {valid.tolist()}), "
            f"or {len(valid)} rows padded to one length"
        )
    return values.reshape(-1, width)[np.arange(width) < valid[:, None]]


def _of_length(inputs: Mapping[str, Any], name: str, length: int) -> Ints:
    values = _integers(inputs, name).reshape(-1)
    if len(values) != length:
        raise RequestError(
            f"{name} has {len(values)} elements, expected one for each of {length} sequences; for a step that brings "
            "prompts, call add_flags(is_first_iteration=True) before"
        )
    return values


def _is_given(inputs: Mapping[str, Any], name: str) -> bool:
    return inputs.get(name) is not None


def _integers(inputs: Mapping[str, Any], name: str) -> Ints:
    if not _is_given(inputs, name):
        raise RequestError(f"forward got no {name}")
    try:
        array = to_numpy(inputs[name])
    except ValueError as error:  # nested lists of unequal lengths
        raise RequestError(f"{name} is no tensor: {error}") from error
    if array.dtype.kind not in "iu":
        raise RequestError(f"{name} has elements of type {array.dtype}, expected integers")
    return array.astype(np.int64)
