"""llm_boost: LLM inference on Ascend NPUs and CPUs."""
