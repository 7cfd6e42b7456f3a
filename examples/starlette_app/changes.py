"""The changes of flights as they arrive: the destination of the outbox, which the page follows.

A relay, in a process of its own, posts each event to `/ui/changes` as a signed webhook in the format of CloudEvents. An
event may be posted again, after a relay was killed: its id tells.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

SECRET: Final = "DESK_CHANGES_SECRET"  # noqa: S105
"""Environment variable with the key of the signatures, `whsec_` and base64; without it there are no changes."""
URL: Final = "DESK_CHANGES_URL"
"""Environment variable with the address that relays post to."""

KEPT: Final = 5_000
"""Number of changes that are kept."""
WAIT_S: Final = 2.0
"""Seconds that a request for changes waits for one."""
TOLERANCE_S: Final = 300
"""Seconds between a signature and its check."""


class Changes:
    """The changes that have arrived, each once.

    Args:
        secret: The key of the signatures.
    """

    def __init__(self, secret: str) -> None:
        self._key = base64.b64decode(secret.removeprefix("whsec_"))
        self._arrived: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._sequence: dict[tuple[str, str], int] = {}
        self._news = asyncio.Event()
        self.number = 0
        self.repeated = 0
        self.out_of_order = 0

    async def receive(self, request: Request) -> Response:
        """POST: one event. It is taken once its signature is right, and answered with 204."""
        body = await request.body()
        if not self._is_signed(request.headers, body):
            raise HTTPException(401, "the signature is wrong")
        self._take({name: unquote(value) for name, value in request.headers.items()}, await request.json())
        return Response(status_code=204)

    async def show(self, request: Request) -> JSONResponse:
        """GET: the changes after the number in `?after=`; waits a moment for the next one."""
        try:
            after = int(request.query_params.get("after", 0))
        except ValueError:
            raise HTTPException(400, "after is a number") from None
        if after == self.number:
            news = self._news
            try:
                async with asyncio.timeout(WAIT_S):
                    await news.wait()
            except TimeoutError:
                pass
        changes = [change for change in self._arrived if change["number"] > after]
        counts = {"repeated": self.repeated, "out_of_order": self.out_of_order}
        return JSONResponse({"last": self.number, "changes": changes, **counts})

    def _is_signed(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether the webhook is signed as Standard Webhooks define it."""
        stamp = headers.get("webhook-timestamp", "")
        if not stamp.isdigit() or abs(time.time() - int(stamp)) > TOLERANCE_S:
            return False
        signed = f"{headers.get('webhook-id', '')}.{stamp}.".encode() + body
        expected = "v1," + base64.b64encode(hmac.digest(self._key, signed, hashlib.sha256)).decode()
        return hmac.compare_digest(headers.get("webhook-signature", ""), expected)

    def _take(self, headers: Mapping[str, str], data: dict[str, Any]) -> None:
        if headers["ce-id"] in self._ids:
            self.repeated += 1
            return
        self._ids[headers["ce-id"]] = None
        if len(self._ids) > KEPT:
            self._ids.popitem(last=False)
        tenant, flight, sequence = headers["ce-tenantid"], headers["ce-subject"], int(headers["ce-sequence"])
        is_late = sequence < self._sequence.get((tenant, flight), 0)
        self._sequence[tenant, flight] = max(sequence, self._sequence.get((tenant, flight), 0))
        self.out_of_order += is_late
        self.number += 1
        written = datetime.fromisoformat(headers["ce-time"]).timestamp()
        self._arrived.append(
            {
                "number": self.number,
                "tenant": tenant,
                "flight": int(flight),
                "topic": headers["ce-type"],
                "data": data,
                "ms": round(max(0.0, time.time() - written) * 1000, 1),
                "is_late": is_late,
            }
        )
        self._news.set()
        self._news = asyncio.Event()
