"""Tell a server that is away from one that refuses, and from one that denies.

What is away comes back: the same request is made again later. What is refused would be
refused again, so it is an error that somebody has to see. What is denied is refused to this
user, who is told what to ask for. In doubt a fault counts as "away": nothing is given up for
it.

MLflow retries short faults itself, in every call (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`); what
is seen here has outlived that.
"""

from __future__ import annotations

import os
import re

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


_DENIALS = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"})
# What several threads met while downloading, which MLflow packs into one text.
_DOWNLOADS_DENIED = re.compile(
    r"failures occurred while downloading.*(\b40[13] Client Error|\(40[13]\)|AccessDenied)",
    re.DOTALL,
)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")


def is_away(error: BaseException) -> bool:
    """Whether the same request may succeed later, with nobody doing anything here."""
    if is_denied(error):
        return False
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
    return _is_remote(error) and _may_pass(_origin(error))


def is_denied(error: BaseException) -> bool:
    """Whether somebody has to be given a permission, or a password, first."""
    if isinstance(error, MlflowException):
        return error.error_code in _DENIALS or bool(_DOWNLOADS_DENIED.search(str(error)))
    if isinstance(error, RequestException):
        return _status(error) in (401, 403)
    origin = _origin(error)
    return _is_remote(origin) and (
        type(origin).__name__ in _NO_CREDENTIALS or _status(origin) in (401, 403)
    )


def advice(error: BaseException) -> str:
    """What to do about a denial."""
    if not isinstance(error, MlflowException | RequestException):
        return (
            "Check the credentials of the artifact store, such as AWS_ACCESS_KEY_ID, and that they "
            "permit to list, read, write and delete there."
        )
    if _status(error) == 401 or getattr(error, "error_code", "") in _DENIALS - {
        "PERMISSION_DENIED"
    }:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        return (
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of a user of that "
            f"server. Received: MLFLOW_TRACKING_USERNAME={user!r}."
        )
    return (
        "Ask for a permission on its experiment: READ to load, EDIT to train and save, MANAGE to "
        "delete old checkpoints as well."
    )


def _origin(error: BaseException) -> BaseException:
    """What the client of an object store met, before it gave it another name."""
    below = error.__cause__ or error.__context__
    if below is None or hasattr(error, "response") or not _is_remote(below):
        return error
    return _origin(below)


def _is_remote(error: BaseException) -> bool:
    """Whether it comes from the client of an object store, whose classes we do not import."""
    root = type(error).__module__.partition(".")[0]
    return root in ("botocore", "boto3", "s3transfer", "google", "azure", "urllib3", "paramiko")


def _may_pass(error: BaseException) -> bool:
    """Judge by the HTTP status, if there is one."""
    status = _status(error)
    if _code(error) == "NoSuchBucket":
        return False
    return status is None or status in (404, 408, 429) or status >= 500


def _status(error: BaseException) -> int | None:
    """The HTTP status of an answer: requests, botocore and Azure each hide it."""
    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", None) or getattr(error, "status_code", None)
    if status is None and isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _code(error: BaseException) -> str | None:
    answer = getattr(error, "response", None)
    return answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
