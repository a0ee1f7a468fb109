"""What a conversion writes: tensors under new names, made of stored ones without touching their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from llm_boost.checkpoint.assemble import assemble_weights, weight_rows
from llm_boost.checkpoint.files import Tensors
from llm_boost.checkpoint.names import EMBEDDING, HEAD, MINDFORMERS, Naming, find_naming, layer_prefixes, split_layer
from llm_boost.checkpoint.tensors import StoredTensor, join_rows, split_rows
from llm_boost.errors import CheckpointError
from llm_boost.model_config import ModelConfig

_MAX_PROBLEMS = 20  # that a message lists


def model_tensors(
    ranks: Sequence[Tensors], config: ModelConfig, where: str, naming: Naming, *, fused: bool, head: bool
) -> list[StoredTensor]:
    """All weights of a model under the names of `naming`.

    Args:
        ranks: What is stored, once for each rank.
        config: The model.
        where: What messages call the checkpoint.
        naming: The names to give.
        fused: Whether q, k, v and gate, up stay together; only MindFormers has names for them.
        head: Whether a tied head is written too, as a copy of the embedding.

    Raises:
        CheckpointError: The checkpoint does not fit the config.
    """
    rows = weight_rows(config)
    tensors: list[StoredTensor] = []
    for weight in assemble_weights(ranks, config, where):
        names = (weight.name,) if fused else naming.part_names(weight.name)
        tensors += [weight] if fused else split_rows(weight, names, rows[weight.name])
        if head and config.tie_word_embeddings and weight.name == EMBEDDING:
            tensors.append(join_rows(HEAD, [weight]))
    return tensors


def fused_tensors(stored: Tensors, where: str) -> list[StoredTensor]:
    """All tensors of a MindFormers checkpoint, with wq, wk, wv and w1, w3 of each layer joined.

    Names alone decide, so that this works for the share of one rank too. What is not fused stays as it is.

    Raises:
        CheckpointError: There is nothing to fuse, or not all that belongs together.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for prefix in layer_prefixes(stored):
        for local, parts in MINDFORMERS.parts.items():
            names = tuple(prefix + part for part in parts)
            if any(name in stored for name in names):
                groups[prefix + local] = names
    if problems := list(_fusion_problems(stored, groups)):
        raise CheckpointError(f"{where}: cannot be fused:\n  " + "\n  ".join(problems[:_MAX_PROBLEMS]))
    if not groups:
        fused = any(split_layer(name)[1] in MINDFORMERS.parts for name in stored)
        found = "is fused already" if fused else "holds no attention.wq; give a Hugging Face model as --input_path"
        raise CheckpointError(f"{where}: {found}")
    first = {names[0]: name for name, names in groups.items()}
    rest = {name for names in groups.values() for name in names[1:]}
    return [
        join_rows(first[name], [stored[part] for part in groups[first[name]]]) if name in first else tensor
        for name, tensor in stored.items()
        if name not in rest
    ]


def _fusion_problems(stored: Tensors, groups: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for fused, names in groups.items():
        missing = [name for name in names if name not in stored]
        kinds = {(stored[name].dtype, stored[name].shape[1:]) for name in names if name in stored}
        if fused in stored:
            yield f"'{fused}' is there already, beside '{names[0]}'"
        elif missing:
            yield f"missing '{missing[0]}', which belongs to '{fused}'"
        elif len(kinds) > 1 or any(not stored[name].shape for name in names):
            yield "parts do not fit: " + "; ".join(str(stored[name]) for name in names)


def halved_tensors(stored: Tensors, config: ModelConfig, where: str) -> list[StoredTensor]:
    """All tensors of an old MindFormers checkpoint, with the rows of wq and wk in the order of today.

    Old checkpoints keep the two elements that the rotary embedding turns together side by side, as Meta's do; today
    they are half a head apart.

    Raises:
        CheckpointError: The checkpoint does not fit the config.
    """
    if find_naming(stored, where) is not MINDFORMERS:
        raise CheckpointError(f"{where}: has Hugging Face names, whose rows are in order; expected MindFormers names")
    assemble_weights([stored], config, where)
    heads = {"attention.wq": config.num_heads, "attention.wk": config.num_kv_heads}
    return [
        _in_halves(tensor, heads[part]) if (part := split_layer(name)[1].rpartition(".")[0]) in heads else tensor
        for name, tensor in stored.items()
    ]


def _in_halves(tensor: StoredTensor, num_heads: int) -> StoredTensor:
    order = np.arange(tensor.shape[0]).reshape(num_heads, -1, 2).swapaxes(1, 2).ravel()
    return join_rows(tensor.name, [tensor.row_range(tensor.name, row, row + 1) for row in order.tolist()])
