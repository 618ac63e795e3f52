"""Signatures as the Standard Webhooks specification wants them."""

import base64
import hashlib
import hmac
import os

_PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    return _PREFIX + base64.b64encode(os.urandom(_SECRET_BYTES)).decode()


def headers(event_id: str, body: bytes, secrets: list[str], now: int) -> dict[str, str]:
    """One signature for each secret: while they are being exchanged, either will do."""
    signed = b"%b.%d.%b" % (event_id.encode(), now, body)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(_signature(secret, signed) for secret in secrets),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
