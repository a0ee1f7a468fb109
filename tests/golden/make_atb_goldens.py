"""Writes the golden texts of what the Ascend backend tells ATB. Read the difference before committing it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from atb_models import PLANS, plan_text

DIRECTORY = Path(__file__).parent / "atb"
DIRECTORY.mkdir(exist_ok=True)
for name in PLANS:
    with tempfile.TemporaryDirectory() as scratch:
        (DIRECTORY / f"{name}.txt").write_text(plan_text(name, Path(scratch)), encoding="utf-8")
