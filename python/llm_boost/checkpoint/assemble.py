"""Makes the weights that a model needs of the tensors that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm_boost import _core
from llm_boost.checkpoint.files import Tensors, open_checkpoint
from llm_boost.checkpoint.names import HEAD, ROWS, Naming, find_naming, split_layer
from llm_boost.checkpoint.tensors import WEIGHT_DTYPES, StoredTensor, join_columns, join_rows
from llm_boost.errors import CheckpointError
from llm_boost.model_config import ModelConfig

_MAX_PROBLEMS = 40  # that a message lists


def read_checkpoint(path: str | Path, config: ModelConfig) -> _core.WeightTable:
    """Finds every weight of a model in a checkpoint, whatever its format.

    Args:
        path: A file or directory, see `open_checkpoint`, with Hugging Face or MindFormers names, q, k, v and gate, up
            being fused or not. The shards of several ranks are put together along the axis that their shapes tell.
        config: The model that the checkpoint is expected to hold.

    Returns:
        The table from which the core loads; the weights themselves have not been read yet.

    Raises:
        CheckpointError: Files are missing, damaged or unsafe, or do not hold what the config asks for.
    """
    table = _core.WeightTable()
    for weight in assemble_weights(open_checkpoint(Path(path)), config, str(path)):
        table.add(weight.name, weight.dtype, weight.shape, weight.segments)
    return table


def weight_rows(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The canonical name of every weight of a model, and the row counts of the matrices that it consists of."""
    return {name: rows for name, (rows, _) in _shapes(config).items()}


def assemble_weights(ranks: Sequence[Tensors], config: ModelConfig, where: str) -> list[StoredTensor]:
    """The weights of a model under their canonical names, made of the tensors of a checkpoint.

    Args:
        ranks: The stored tensors by name, once for each rank.
        config: The model.
        where: What messages call the checkpoint.

    Raises:
        CheckpointError: One error that lists all missing, surplus and misshapen tensors.
    """
    assembly = _Assembly(ranks, find_naming(ranks[0], where))
    weights = [assembly.weight(name, rows, columns) for name, (rows, columns) in _shapes(config).items()]
    assembly.check_surplus(tied=config.tie_word_embeddings)
    if assembly.problems:
        more = len(assembly.problems) - _MAX_PROBLEMS
        shown = assembly.problems[:_MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise CheckpointError(f"{where}: the checkpoint does not fit the model's config:\n  " + "\n  ".join(shown))
    return [weight for weight in weights if weight is not None]


def _shapes(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Canonical name -> row counts of the matrices, and the rest of the shape."""
    counts = {
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "q": config.num_heads * config.head_dim,
        "kv": config.num_kv_heads * config.head_dim,
        "ffn": config.intermediate_size,
    }
    return {
        name: (tuple(counts[symbol] for symbol in ROWS[split_layer(name)[1]]), tuple(shape[1:]))
        for name, shape in _core.expected_weights(config.to_core(max_positions=1))
    }


@dataclass(slots=True)
class _Assembly:
    """Takes weights out of a checkpoint, and collects what is wrong with it."""

    ranks: Sequence[Tensors]
    naming: Naming
    problems: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def weight(self, name: str, rows: tuple[int, ...], columns: tuple[int, ...]) -> StoredTensor | None:
        if any(name in rank for rank in self.ranks):  # stored as it is wanted, fused where that is usual
            return self._matrices(name, rows, columns)
        part_names = self.naming.part_names(name)
        parts = [self._matrices(part, (count,), columns) for part, count in zip(part_names, rows, strict=True)]
        found = [part for part in parts if part is not None]
        if len(dtypes := {part.dtype for part in found}) > 1:
            self.problems.append(f"the parts of '{name}' have different types: {', '.join(sorted(dtypes))}")
        elif len(found) == len(parts):
            return join_rows(name, found)
        return None

    def check_surplus(self, *, tied: bool) -> None:
        known = self.used | ({HEAD} if tied else set())  # many formats store a tied embedding twice
        surplus = {name: tensor for rank in self.ranks for name, tensor in rank.items() if name not in known}
        self.problems += [
            f"surplus {surplus[name]}" for name in sorted(surplus) if not self.naming.ignores(surplus[name])
        ]

    def _matrices(self, name: str, rows: tuple[int, ...], columns: tuple[int, ...]) -> StoredTensor | None:
        """A stored tensor that consists of matrices with `rows`, put together from the ranks."""
        self.used.add(name)
        shards = [rank[name] for rank in self.ranks if name in rank]
        shape = (sum(rows), *columns)
        if not shards:
            self.problems.append(f"missing '{name}' {list(shape)}")
        elif shards[0].dtype not in WEIGHT_DTYPES:
            self.problems.append(f"{shards[0]}, expected one of the types {', '.join(WEIGHT_DTYPES)}")
        elif len({(shard.dtype, shard.shape) for shard in shards}) > 1:
            self.problems.append(f"'{name}' differs in type or shape from rank to rank")
        elif (merged := self._merge(shards, rows, columns)) is not None:
            return merged
        else:
            split = f", or a share of its rows or columns on each of {len(self.ranks)} ranks"
            self.problems.append(f"{shards[0]}, expected shape {list(shape)}{split if len(self.ranks) > 1 else ''}")
        return None

    def _merge(
        self, shards: list[StoredTensor], rows: tuple[int, ...], columns: tuple[int, ...]
    ) -> StoredTensor | None:
        name, shape, num_ranks = shards[0].name, shards[0].shape, len(self.ranks)
        if shape == (sum(rows), *columns):
            return shards[0]  # every rank has all of it
        if len(shards) < num_ranks:
            return None
        if shape == (sum(rows) // num_ranks, *columns) and not any(count % num_ranks for count in rows):
            shares = [count // num_ranks for count in rows]
            begins = [sum(shares[:i]) for i in range(len(shares))]
            pieces = [
                shard.row_range(name, begin, begin + share)
                for begin, share in zip(begins, shares, strict=True)
                for shard in shards
            ]
            return join_rows(name, pieces)
        if columns and shape == (sum(rows), columns[0] // num_ranks) and not columns[0] % num_ranks:
            return join_columns(name, shards)
        return None
