"""An HTTP server for a model: OpenAI's API, MindIE's and TGI's ``/generate``, metrics, a chat page.

It needs ``pip install "llm_boost[serve]"``.
"""

from __future__ import annotations

from llm_boost.serve.app import create_app
from llm_boost.serve.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]
