"""What obstore raises, as TierError: with the cause, and the right that is missing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.tiers.base import Missing, NoSpace, TierError

DENIED = "http_403"
# What servers say that have no DeleteObjects.
NO_BULK = ("http_400", "http_405", "http_501")
_STATUS = re.compile(r"status code: (\d{3})")
# In the last part of obstore's text, over many lines.
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(\w+)")
_REASON = re.compile(r'(?:([\w.:\[\]]+:\d+),\s*Os \{[^}]*)?(?:message|error): "([^"]+)"')


@contextmanager
def translated(right: str) -> Iterator[None]:
    """What obstore raises, as TierError. `right` is AWS's name of what is needed here."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        raise _failure(error, right) from None


def _failure(error: Exception, right: str) -> TierError:
    text = str(error)
    line = text.partition("\n")[0][:300]
    status = _STATUS.search(text)
    if "NoSuchBucket" in text:
        return TierError("no_bucket", line)
    if isinstance(error, FileNotFoundError):
        return Missing()
    if "AccessDenied" in text or (status is not None and status[1] == "403" and "HEAD" in line):
        return TierError(DENIED, f"is the permission {right} missing? {line}")
    if status is not None:
        return (NoSpace if status[1] == "507" else TierError)(f"http_{status[1]}", line)
    certificate = _CERTIFICATE.search(text)
    if certificate is not None:
        return TierError("certificate", f"{certificate[1]}: {line}")
    if "Timeout" in text or "TimedOut" in text:
        return TierError("timeout", line)
    reason = _REASON.search(text)
    why = ": ".join(part for part in reason.groups() if part) + ": " if reason else ""
    return TierError("connection" if "Connect" in text else "s3", why + line)
