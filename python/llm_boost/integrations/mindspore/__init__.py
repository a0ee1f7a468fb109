"""llm_boost as the boost of MindFormers, or of any framework with a scheduler and block tables of its own.

The shapes and names are those of ``mindspore.experimental.llm_boost``; MindSpore itself is imported only to answer with
its tensors when it was asked with them. To let an installed MindSpore find these classes under its own registry::

    from mindspore.experimental.llm_boost.register import LlmBoostRegister as theirs
    from llm_boost.integrations.mindspore import LlamaBoost, QwenBoost

    theirs.register("BuildIn", "Llama")(LlamaBoost)
    theirs.register("BuildIn", "Qwen")(QwenBoost)
"""

from __future__ import annotations

from llm_boost.integrations.mindspore.boost import LlamaBoost, LlmBoost, QwenBoost
from llm_boost.integrations.mindspore.causal_lm import LlmBoostForCausalLM
from llm_boost.integrations.mindspore.config import LlmBoostConfig
from llm_boost.integrations.mindspore.register import LlmBoostRegister, LlmBoostType

__all__ = [
    "LlamaBoost",
    "LlmBoost",
    "LlmBoostConfig",
    "LlmBoostForCausalLM",
    "LlmBoostRegister",
    "LlmBoostType",
    "QwenBoost",
]
