"""What the errors of boto3 mean, and which errors our callers get instead."""

from __future__ import annotations

from boto3.exceptions import Boto3Error
from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from mpa_ray.errors import AccessLost, ConfigError, NoSuchBucket
from mpa_ray.storage.faults import Fault, fault_of

MAX_PAUSE_S = 20.0
_NO_CREDENTIALS = (
    *(exceptions.NoCredentialsError, exceptions.PartialCredentialsError),
    *(exceptions.ProfileNotFound, exceptions.NoAuthTokenError),
)
_LOST_CREDENTIALS = (
    *(exceptions.CredentialRetrievalError, exceptions.TokenRetrievalError, exceptions.RefreshWithMFAUnsupportedError),
    *(exceptions.LoginError, exceptions.SSOError),
)
_CONNECTION = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    exceptions.MetadataRetrievalError,
    exceptions.ChecksumError,
    exceptions.FlexibleChecksumError,
    ResponseParserError,
    HTTPError,
    Boto3Error,
)
"""Errors of the connection, of a proxy, and of the service that gives a machine its credentials."""
ERRORS = (ClientError, BotoCoreError, ResponseParserError, Boto3Error, HTTPError, RuntimeError)
_NO_BUCKET = dict.fromkeys(("NoSuchBucket", "InvalidBucketName"), NoSuchBucket)
_BAD_CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"


def final_error(name: str, fault: Fault, error: Exception) -> Exception:
    """The error to raise if a request is not repeated."""
    if fault is Fault.MISSING:
        return FileNotFoundError(name)
    if isinstance(error, _NO_CREDENTIALS):
        remedy = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE on every node, or give nodes a role."
        return ConfigError("object_store", name, f"cannot be accessed: {str(error).rstrip('.')}.", remedy)
    if fault is Fault.ACCESS_LOST:
        return AccessLost(f"{name}: {str(error).rstrip('.')}. Renew the credentials, and check the clock.")
    kind = _NO_BUCKET.get(error_code(error), PermissionError if _status(error) == 403 else OSError)
    return kind(f"{name}: {' '.join(str(error).split())} (attempt 1)")


def fault_of_error(error: Exception) -> Fault:
    """Classify an error; raise it again if it is a RuntimeError that has nothing to do with credentials."""
    if isinstance(error, ClientError):
        return fault_of(_status(error), error_code(error))
    if isinstance(error, _LOST_CREDENTIALS):
        return Fault.ACCESS_LOST
    if isinstance(error, RuntimeError):
        # botocore raises RuntimeError if the service that gives a machine its credentials returns expired ones.
        if "expired" not in str(error):
            raise error
        return Fault.ACCESS_LOST
    if isinstance(error, _CONNECTION) and _BAD_CERTIFICATE not in str(error):
        return Fault.TRANSIENT
    return Fault.PERMANENT


def retry_after_s(error: Exception) -> float:
    """Return the pause that the store asks for, at most `MAX_PAUSE_S`; 0 if it asks for none."""
    if not isinstance(error, ClientError):
        return 0.0
    value = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    return min(MAX_PAUSE_S, float(value)) if value.isdecimal() else 0.0


def underlying(error: Exception) -> Exception:
    """Return the server's error if one of boto3's transfers has wrapped it; otherwise, return `error` itself."""
    context = error.__context__
    return context if isinstance(error, Boto3Error) and isinstance(context, ClientError | BotoCoreError) else error


def error_code(error: Exception) -> str:
    """The store's name for the error; botocore uses the HTTP status if the response has no body."""
    if isinstance(error, exceptions.ParamValidationError) and "Invalid bucket name" in str(error):
        return "InvalidBucketName"
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _status(error: Exception) -> int:
    """The HTTP status; 0 if there was no response."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if isinstance(error, ClientError) else 0
