"""Errors as OpenAI's clients read them, each with a sentence of ours."""

from __future__ import annotations

from typing import Any

from paligemma.errors import (
    AccessError,
    ImageError,
    MissingExtraError,
    ModelNotFoundError,
    PaliGemmaError,
    PromptError,
    RunError,
)


class ServeError(PaliGemmaError):
    """A request that is not answered.

    Args:
        message: rule, value and remedy.
        status: of HTTP.
        code: a word that programs can compare.
        param: the field that is at fault.
        retry_after_s: when to try again, where that helps.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_request",
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """That go with it."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    **dict.fromkeys((500, 501, 502, 503, 504), "server_error"),
}


def as_serve_error(error: BaseException) -> ServeError:
    """The answer to a request that failed: our sentences as they are, anything else as one."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, ModelNotFoundError | AccessError):
        return ServeError(str(error), status=404, code="model_not_found", param="model")
    if isinstance(error, MissingExtraError):
        return ServeError(str(error), status=501, code="not_installed")
    if isinstance(error, RunError):
        return ServeError(str(error), status=500, code="server_error")
    if isinstance(error, ImageError):
        return ServeError(str(error), code="invalid_image", param="image")
    if isinstance(error, PromptError):
        return ServeError(str(error), code="invalid_prompt", param="prompt")
    if isinstance(error, PaliGemmaError):
        return ServeError(str(error))
    return ServeError(
        "the server failed at this request; its log says where, beside the request's id",
        status=500,
        code="server_error",
    )
