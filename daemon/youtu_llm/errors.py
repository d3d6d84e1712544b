"""One exception tree. Each class defines what an API client sees.

`code` is the API's string code, `status` the HTTP status, `retryable` whether the same
request may succeed later. Messages are for users: they name the problem and the remedy.
"""

from __future__ import annotations

from typing import Any


class YoutuError(Exception):
    """Base of every error that this project raises itself."""

    code = "internal_error"
    status = 500
    retryable = False
    exit_status = 1  # of the command line

    def __init__(self, message: str, *, param: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.details = details  # extra keys of the API's error object


class ConfigError(YoutuError):
    """The configuration is wrong. The message holds every problem, one a line."""

    code = "config_error"
    exit_status = 78  # EX_CONFIG: systemd does not restart on it


class ModelError(YoutuError):
    """A model is missing, corrupt or not supported. Retrying does not help."""

    code = "model_error"
    status = 503


class DownloadError(YoutuError):
    """A model could not be fetched: no network, no such file, wrong size or checksum."""

    code = "download_failed"
    status = 503
    retryable = True


class ResourceError(YoutuError):
    """The plan does not fit this machine's memory or disk."""

    code = "insufficient_resources"
    status = 503


class InvalidRequest(YoutuError):
    code = "invalid_request"
    status = 400


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class Unauthorized(YoutuError):
    code = "unauthorized"
    status = 401


class Forbidden(YoutuError):
    code = "forbidden"
    status = 403


class NotFound(YoutuError):
    code = "not_found"
    status = 404


class PayloadTooLarge(YoutuError):
    code = "payload_too_large"
    status = 413


class UnsupportedMediaType(YoutuError):
    code = "unsupported_media_type"
    status = 415


class QueueFull(YoutuError):
    code = "queue_full"
    status = 429
    retryable = True

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineUnavailable(YoutuError):
    """The engine cannot answer now. `code` is one of loading, engine_restarting, failed."""

    status = 503
    retryable = True

    def __init__(self, message: str, *, code: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class EngineFault(YoutuError):
    """The engine failed this request: out of memory, a crash, an internal error."""

    code = "engine_error"
    status = 500
    retryable = True

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code or self.code
