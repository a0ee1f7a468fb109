"""llm_boost inside other frameworks. Every module is imported on its own."""
