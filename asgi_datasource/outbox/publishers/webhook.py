"""Webhooks: POST requests, signed as Standard Webhooks define it, to public addresses, without redirects.

Source: the specification of Standard Webhooks (webhook-id, webhook-timestamp, webhook-signature); RFC 9110,
"Retry-After"; CloudEvents HTTP protocol binding, binary mode.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast
from urllib.parse import quote, urlsplit

import httpcore

from ...errors import ConfigError
from ..entry import OutboxEntry
from ..protocols import Refused, Unreachable
from .cloud_events import attributes_of
from .keyed import KeyedPublisher

_SAFE: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
"""Characters that stay as they are in a header; all others are percent-encoded (CloudEvents HTTP binding, 3.1.3.2)."""

_AWAY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that say nothing about the message."""


class WebhookPublisher(KeyedPublisher):
    """Posts each event to one URL.

    Args:
        url: Where to.
        secret: The key of the signatures: `whsec_` and base64.
        allow_private: The host may have a private, loopback or link-local address, and the URL may be http.
        timeout_s: Seconds that the receiver may take to answer.

    Raises:
        ConfigError: The URL or the secret cannot be used.
    """

    parallel = 16
    system = "webhook"

    def __init__(self, url: str, secret: str, *, allow_private: bool = False, timeout_s: float = 15.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ConfigError("outbox.publisher.webhook.url: expected https://host/path, without user and password")
        if parts.scheme == "http" and not allow_private:
            raise ConfigError("outbox.publisher.webhook.url: use https, or set allow_private for a receiver nearby")
        self._url = url
        self._key = read_secret(secret)
        self._timeout_s = timeout_s
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            network_backend=PinnedBackend(allow_private=allow_private),
            max_connections=self.parallel,
        )

    async def send(self, entry: OutboxEntry) -> None:
        """Post one event; 2xx delivers it."""
        limits = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._pool.request(
                    "POST",
                    self._url,
                    headers=self._headers(entry, int(time.time())),
                    content=entry.data,
                    extensions={"timeout": limits},
                )
        except PrivateAddress as error:
            raise Unreachable(str(error)) from error
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, TimeoutError) as error:
            raise Unreachable(f"webhook: {type(error).__name__}") from error
        _judge(response)

    def _headers(self, entry: OutboxEntry, stamp: int) -> list[tuple[str, str]]:
        signed = f"{entry.idempotency_key}.{stamp}.".encode() + entry.data
        signature = base64.b64encode(hmac.digest(self._key, signed, hashlib.sha256)).decode()
        named = {f"ce-{name}": value for name, value in attributes_of(entry).items()}
        own = {name: value for name, value in entry.headers.items() if name.replace("-", "").isalnum()}
        return [
            *((name, quote(value, safe=_SAFE)) for name, value in {**own, **named}.items()),
            ("Content-Type", entry.content_type),
            ("User-Agent", "asgi-datasource-outbox"),
            ("webhook-id", entry.idempotency_key),
            ("webhook-timestamp", str(stamp)),
            ("webhook-signature", f"v1,{signature}"),
        ]

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


def read_secret(secret: str) -> bytes:
    """The key in a secret of Standard Webhooks.

    Raises:
        ConfigError: It is none, or not of 24 to 64 bytes.
    """
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not 24 <= len(key) <= 64:
        raise ConfigError("outbox.publisher.webhook.secret: expected whsec_ and 24 to 64 bytes in base64")
    return key


def _judge(response: httpcore.Response) -> None:
    status = response.status
    if 200 <= status < 300:
        return
    if status in _AWAY:
        raise Unreachable(f"webhook: status {status}", retry_after_s=_retry_after_s(response.headers))
    if 300 <= status < 400:
        raise Refused(f"webhook: status {status}, and redirects are not followed")
    raise Refused(f"webhook: status {status}", retry_after_s=_retry_after_s(response.headers))


def _retry_after_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    for name, value in headers:
        if name.lower() == b"retry-after":
            text = value.decode("ascii", "replace").strip()
            if text.isdigit():
                return float(text)
            try:
                return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
            except (TypeError, ValueError):
                return None
    return None


class PrivateAddress(Exception):
    """Raised when the receiver's host has an address that is not public."""


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the address that was checked: a name that is resolved twice may lead elsewhere the second time.

    Args:
        allow_private: Any address will do.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        # As what it implements: to type checkers the class is a stand-in where anyio is not installed.
        self._backend = cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check all addresses, and connect to the first."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError("the name cannot be resolved") from error
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        if not self._allow_private:
            for address in addresses:
                if not is_public(address):
                    raise PrivateAddress("webhook: the host has an address that is not public; see allow_private")
        failure: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        """Never: a webhook has a host."""
        raise httpcore.ConnectError("webhooks are not sent to Unix sockets")

    async def sleep(self, seconds: float) -> None:
        """Wait between attempts."""
        await self._backend.sleep(seconds)


def is_public(address: str) -> bool:
    """Whether an address is one of the public Internet; those that embed a private one are not."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo or (None, None))[1]
        if inner is not None and not inner.is_global:
            return False
        # NAT64 (RFC 6052): the last four bytes are an IPv4 address.
        if parsed in ipaddress.IPv6Network("64:ff9b::/96"):
            return ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF).is_global
    return parsed.is_global and not parsed.is_multicast
