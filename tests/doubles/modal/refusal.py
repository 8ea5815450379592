"""How the double says no."""

from __future__ import annotations

from grpclib import Status as Code


class Refused(Exception):
    """The service says no."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code, self.why = code, why
