"""Text without credentials."""

from __future__ import annotations

import re


def redact(text: str) -> str:
    """``text``, a URI or a message that may hold one, without credentials."""
    # A password may hold a slash or an at: all up to the last at that ends a host is taken out.
    text = re.sub(r"://[^\s@]*(?:@[^\s/@]*)*@", "://***@", text)
    query = r"([?&][^=&\s]*(?:password|passwd|token|secret|key)[^=&\s]*=)[^&\s]+"
    return re.sub(query, r"\1***", text, flags=re.IGNORECASE)
