"""What can go wrong between a request and its answer, as the API says it (RFC 9457).

ServiceError
    RequestError                the client's to mend
        MalformedError          400  the body cannot be read at all
        UnauthorizedError       401
        ForbiddenError          403  the token lacks a scope
        ForeignHostError        403  a web page elsewhere speaks through the user's browser
        QuotaError              403  the quota of a label is used up
        NotFoundError           404
        TooSlowError            408  the body did not arrive in time
        ConflictError           409  the job is not in a state for it
        ChangedError            412  somebody else was faster
        TooLargeError           413
        MediaTypeError          415
        RangeError              416
        InvalidError            422  readable, and wrong: `problems` say where
        TooManyStreamsError     429  trying again later helps
        TooManyRequestsError    429  trying again later helps
    DamagedError                500  a file is not what its manifest says; trying again does not help
    UnavailableError            503  this controller cannot do it now, or not at all; the message says which
    UnreachableError            503  the object store does not answer; trying again may help
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from worker.contract import Problem


class ServiceError(Exception):
    """An error with its place in the API.

    Attributes:
        status: HTTP status.
        code: stable and machine-readable.
        detail: one sentence for a person: what, the value, what was expected, what to do.
        problems: the same value by value.
        headers: of the response.
    """

    status: ClassVar[int] = 500
    code: str = "internal_error"

    def __init__(
        self, detail: str, *, code: str | None = None, problems: Sequence[Problem] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.problems = tuple(problems)
        self.headers = dict(headers or {})


class RequestError(ServiceError):
    """The client's to mend."""

    status = 400
    code = "bad_request"


class MalformedError(RequestError):
    """The body cannot be read at all."""

    code = "malformed_body"


class UnauthorizedError(RequestError):
    """No token, or one that is not admitted."""

    status = 401
    code = "unauthorized"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="syncbn"'})


class ForbiddenError(RequestError):
    """The token is admitted, but not for this."""

    status = 403
    code = "scope_missing"


class ForeignHostError(RequestError):
    """The request names a host that is not ours: DNS rebinding, or a page of another site."""

    status = 403
    code = "host_not_allowed"


class QuotaError(RequestError):
    """The quota of a label is used up."""

    status = 403
    code = "quota_exceeded"


class NotFoundError(RequestError):
    """There is no such thing."""

    status = 404
    code = "not_found"


class TooSlowError(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "body_too_slow"


class ConflictError(RequestError):
    """The job is not in a state for it."""

    status = 409
    code = "conflict"


class ChangedError(RequestError):
    """The job is not the edition that the client has seen."""

    status = 412
    code = "precondition_failed"


class TooLargeError(RequestError):
    """The body is too large."""

    status = 413
    code = "body_too_large"


class MediaTypeError(RequestError):
    """The body is of a type that is not read here."""

    status = 415
    code = "unsupported_media_type"


class RangeError(RequestError):
    """No byte of the file is in the range."""

    status = 416
    code = "range_not_satisfiable"

    def __init__(self, header: str, size: int) -> None:
        detail = f"range {header[:100]} is outside of the file; expected a start below {size}; the file has {size} bytes"
        super().__init__(detail, headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"})


class InvalidError(RequestError):
    """Readable, and wrong."""

    status = 422
    code = "invalid_request"

    @classmethod
    def of(cls, problems: Sequence[Problem], code: str | None = None) -> "InvalidError":
        """Return the error that says all the problems."""
        return cls("; ".join(str(problem) for problem in problems), code=code, problems=problems)


class TooManyStreamsError(RequestError):
    """Every place for a stream is taken."""

    status = 429
    code = "too_many_streams"


class TooManyRequestsError(RequestError):
    """The token has used up its share for now."""

    status = 429
    code = "too_many_requests"


class DamagedError(ServiceError):
    """A stored file is not what its manifest says."""

    code = "checkpoint_damaged"


class UnavailableError(ServiceError):
    """This controller cannot do it now, or not where it runs."""

    status = 503
    code = "prediction_unavailable"


class UnreachableError(ServiceError):
    """The object store does not answer."""

    status = 503
    code = "storage_unreachable"
