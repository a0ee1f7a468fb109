"""Messages for names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str], *, list_known: bool = True) -> str:
    """Describes an unknown name and the nearest known one.

    Args:
        kind: What the name should have been, for example ``"sampling parameter"``.
        name: The name that was found.
        known: The names that would have been right.
        list_known: End with all of them; where they are many, a near one is enough.

    Example:
        >>> unknown_name("option", "top_pp", ["top_k", "top_p"])
        "unknown option 'top_pp'; did you mean 'top_p'? Known: top_k, top_p"
    """
    names = sorted(known)
    containing = [candidate for candidate in names if len(name) >= 3 and name.lower() in candidate.lower()]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6) or containing
    message = f"unknown {kind} '{name}'" + (f"; did you mean '{near[0]}'?" if near else ";" if list_known else "")
    return f"{message} Known: {', '.join(names)}" if list_known else message
