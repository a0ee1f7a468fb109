"""What pulling left behind."""

from __future__ import annotations

import os
from pathlib import Path


def pulled(home: Path) -> list[str]:
    """What lies in the cache, besides locks."""
    return sorted(name for name in os.listdir(home / "models") if not name.endswith(".lock"))
