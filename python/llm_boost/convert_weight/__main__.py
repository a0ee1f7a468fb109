"""``python -m llm_boost.convert_weight``."""

from __future__ import annotations

import sys

from llm_boost.convert_weight import main

if __name__ == "__main__":
    sys.exit(main())
