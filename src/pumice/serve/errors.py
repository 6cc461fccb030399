"""Errors as clients of OpenAI's API expect them, and nothing in them that a stranger shouldn't see.

PumiceError, ApiError ──to_json──> {"error": {"message", "type", "param", "code"}}
"""

from __future__ import annotations

import re
from typing import Any

from pumice.types import PumiceError

TYPES = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}


class ApiError(PumiceError):
    """A refusal with its HTTP status. ``param`` names the field; ``retry_after`` is in seconds."""

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.retry_after = status, code, message, param, retry_after

    @property
    def kind(self) -> str:
        """OpenAI's type of the error."""
        if self.status in TYPES:
            return TYPES[self.status]
        return "invalid_request_error" if self.status < 500 else "server_error"

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        said = f"{self.param}: {self.message}" if self.param else self.message
        return {"error": {"message": said, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers of the answer beside those that all have."""
        headers = {} if self.retry_after is None else {"retry-after": str(max(1, round(self.retry_after)))}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, code, message, param)


def clean(text: str) -> str:
    """One of Pumice's own error texts without what libraries said, which stands in brackets and may name addresses.

    Control characters go as well, so that a text can't forge a line of a log.
    """
    own = re.sub(r"\s*\(.*\)", "", text, flags=re.DOTALL)
    return " ".join("".join(c if c.isprintable() else " " for c in own).split())[:400]


def from_error(error: Exception, param: str | None = None) -> ApiError:
    """Whatever went wrong as an ApiError: what is the client's to mend keeps its words, the rest is fixed."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PumiceError):
        return invalid(clean(str(error)), param)
    return ApiError(500, "internal_error", "the server failed on this request; its log says more under the request id")
