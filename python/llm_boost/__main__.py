"""``python -m llm_boost`` is the ``llm-boost`` command."""

from __future__ import annotations

import sys

from llm_boost.cli import main

sys.exit(main())
