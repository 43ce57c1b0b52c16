"""Answers that say no, in the shape that OpenAI's clients read."""

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

BAD_REQUEST, RATE_LIMIT, SERVER_ERROR = "invalid_request_error", "rate_limit_error", "server_error"


class Refused(HTTPException):
    """A request cannot be answered: the HTTP status, what was found and what to do, and which parameter it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def response(self) -> JSONResponse:
        """Return the answer: {"error": {"message", "type", "param", "code"}}."""
        kind = RATE_LIMIT if self.status_code == 429 else BAD_REQUEST if self.status_code < 500 else SERVER_ERROR
        error = {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status_code, self.headers)
