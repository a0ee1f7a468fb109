"""Run configs: the YAML files that MindFormers' predict scripts take, read and put to use."""

from __future__ import annotations

from llm_boost.run_config.reader import RunConfig, load_config, read_run_config

__all__ = ["RunConfig", "load_config", "read_run_config"]
