"""What checkpoints call the weights. The tables are all that the rest of the package knows about a naming."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from llm_boost.checkpoint.tensors import StoredTensor
from llm_boost.errors import CheckpointError

EMBEDDING = "model.tok_embeddings.embedding_weight"
HEAD = "lm_head.weight"
_LAYER = re.compile(r"(model\.layers\.(?:0|[1-9]\d{0,4})\.)(.+)", re.ASCII)

# Canonical name, local to its layer -> the row counts of the matrices that the weight consists of.
ROWS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        EMBEDDING: ("vocab",),
        "attention_norm.weight": ("hidden",),
        "attention.w_qkv.weight": ("q", "kv", "kv"),
        "attention.w_qkv.bias": ("q", "kv", "kv"),
        "attention.wo.weight": ("hidden",),
        "attention.wo.bias": ("hidden",),
        "ffn_norm.weight": ("hidden",),
        "feed_forward.w_gate_hidden.weight": ("ffn", "ffn"),
        "feed_forward.w2.weight": ("hidden",),
        "model.norm_out.weight": ("hidden",),
        HEAD: ("vocab",),
    }
)


@dataclass(frozen=True, slots=True)
class Naming:
    """One family of names.

    Attributes:
        title: What users call it.
        parts: Canonical name, local to its layer -> names of the matrices that it consists of, local to it too.
            A weight that is not listed has its canonical name.
        ignored: Patterns of names that no model needs.
        training_state: Whether checkpoints also hold counters and other scalars of a training.
    """

    title: str
    parts: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...]
    training_state: bool = False

    def part_names(self, canonical: str) -> tuple[str, ...]:
        """The names of the matrices of a weight.

        Example:
            >>> MINDFORMERS.part_names("model.layers.3.feed_forward.w_gate_hidden.weight")
            ('model.layers.3.feed_forward.w1.weight', 'model.layers.3.feed_forward.w3.weight')
        """
        prefix, local = split_layer(canonical)
        return tuple(prefix + part for part in self.parts.get(local, (local,)))

    def ignores(self, tensor: StoredTensor) -> bool:
        """Whether a surplus tensor is one that no model needs."""
        if any(fnmatchcase(tensor.name, pattern) for pattern in self.ignored):
            return True
        return self.training_state and tensor.shape in ((), (1,))


HUGGING_FACE = Naming(
    "Hugging Face",
    MappingProxyType(
        {
            EMBEDDING: ("model.embed_tokens.weight",),
            "attention_norm.weight": ("input_layernorm.weight",),
            "attention.w_qkv.weight": (
                "self_attn.q_proj.weight",
                "self_attn.k_proj.weight",
                "self_attn.v_proj.weight",
            ),
            "attention.w_qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
            "attention.wo.weight": ("self_attn.o_proj.weight",),
            "attention.wo.bias": ("self_attn.o_proj.bias",),
            "ffn_norm.weight": ("post_attention_layernorm.weight",),
            "feed_forward.w_gate_hidden.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
            "feed_forward.w2.weight": ("mlp.down_proj.weight",),
            "model.norm_out.weight": ("model.norm.weight",),
        }
    ),
    # Old checkpoints store the rope frequencies, which the config already determines.
    ignored=("*.self_attn.rotary_emb.inv_freq",),
)
MINDFORMERS = Naming(
    "MindFormers",
    MappingProxyType(
        {
            "attention.w_qkv.weight": ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight"),
            "attention.w_qkv.bias": ("attention.wq.bias", "attention.wk.bias", "attention.wv.bias"),
            "feed_forward.w_gate_hidden.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
        }
    ),
    ignored=("adam_m.*", "adam_v.*", "moment1.*", "moment2.*", "accu_grads.*", "*.key_cache", "*.value_cache"),
    training_state=True,
)
NAMINGS = (HUGGING_FACE, MINDFORMERS)


def find_naming(stored: Mapping[str, StoredTensor], where: str) -> Naming:
    """The naming of a checkpoint, which the name of its embedding tells.

    Raises:
        CheckpointError: It is none of those known.
    """
    for naming in NAMINGS:
        if naming.part_names(EMBEDDING)[0] in stored:
            return naming
    known = " nor ".join(f"'{naming.part_names(EMBEDDING)[0]}' ({naming.title})" for naming in NAMINGS)
    names = ", ".join(f"'{name}'" for name in list(stored)[:3])
    raise CheckpointError(f"{where}: holds neither {known}, so it is no model known here; it starts with {names}")


def split_layer(name: str) -> tuple[str, str]:
    """Cuts a name into the prefix of its layer, empty where it has none, and the rest.

    Example:
        >>> split_layer("model.layers.3.ffn_norm.weight")
        ('model.layers.3.', 'ffn_norm.weight')
    """
    match = _LAYER.fullmatch(name)
    return (match[1], match[2]) if match else ("", name)


def layer_prefixes(names: Iterable[str]) -> list[str]:
    """The layers that occur in `names`, in the order of their numbers."""
    prefixes = {prefix for name in names if (prefix := split_layer(name)[0])}
    return sorted(prefixes, key=lambda prefix: int(prefix.split(".")[2]))
