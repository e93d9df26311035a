"""Tell a server that is away from one that refuses.

What is away comes back: the same request is made again later. What is refused would be
refused again, so it is an error that somebody has to see. In doubt a fault counts as
"away": nothing is given up for it.

MLflow retries short faults itself, in every call (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`); what
is seen here has outlived that.
"""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from requests.exceptions import InvalidURL, MissingSchema, RequestException
from sqlalchemy.exc import DBAPIError, OperationalError

# A server that was reached and understood the request. ENDPOINT_NOT_FOUND is not among them, nor
# is a plain 404: a gateway answers so in the name of a server that restarts.
_REFUSALS = frozenset({
    "BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST", "RESOURCE_CONFLICT", "PERMISSION_DENIED", "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED", "NOT_IMPLEMENTED", "FEATURE_DISABLED", "RESOURCE_LIMIT_EXCEEDED",
})  # fmt: skip


def is_away(error: BaseException) -> bool:
    """Whether the same request may succeed later, with nobody doing anything here."""
    if isinstance(error, MlflowException):
        return error.error_code not in _REFUSALS
    if isinstance(error, DBAPIError):
        return isinstance(error, OperationalError) or error.connection_invalidated
    if isinstance(error, RequestException):
        return not isinstance(error, InvalidURL | MissingSchema) and _may_pass(error)
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError):
        return False  # a disk of this machine
    return _is_remote(error) and _may_pass(error)


def _is_remote(error: BaseException) -> bool:
    """Whether it comes from the client of an object store, whose classes we do not import."""
    root = type(error).__module__.partition(".")[0]
    return root in ("botocore", "boto3", "s3transfer", "google", "azure", "urllib3", "paramiko")


def _may_pass(error: BaseException) -> bool:
    """Judge by the HTTP status, if there is one: requests, botocore and Azure each hide it."""
    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", None) or getattr(error, "status_code", None)
    if status is None and isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return not isinstance(status, int) or status in (404, 408, 429) or status >= 500
