"""Sends the weekly report to a webhook that takes what Slack's incoming webhooks take: once a week, by one worker."""

from __future__ import annotations

import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from assay.errors import AssayError
from assay.report import read_report
from assay.report_text import slack_message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from assay.store import Store

_log = logging.getLogger(__name__)

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

#: How long a claim holds: so long after a failure nobody tries again.
_LEASE = 600.0
#: Bound of one try, and seconds before each further one.
_TIMEOUT = 10.0
_PAUSES = (1.0, 4.0)
#: The longest that the receiver may ask us to wait for.
_MOST_PAUSE = 30.0


class ReportError(AssayError):
    """The webhook did not take the report; the message never holds its address, which is a secret."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Nowhere: a report goes to the address that was configured or to none."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def last_due(now: datetime, weekday: str, hour: int) -> datetime:
    """The latest moment, at or before `now` (aware), that a report was due: on `weekday`, at `hour` UTC."""
    now = now.astimezone(UTC)
    back = (now.weekday() - WEEKDAYS.index(weekday)) % 7
    due = now.replace(hour=hour, minute=0, second=0, microsecond=0) - timedelta(days=back)
    return due if due <= now else due - timedelta(days=7)


def send_due(
    store: Store,
    url: str,
    *,
    weekday: str,
    hour: int,
    weeks: int = 8,
    fields: Sequence[str] = (),
    clock: Callable[[], float] = time.time,
) -> bool:
    """Send the report that was due last, unless it was sent; True when this call has sent it.

    Any number of workers may call it at once: one claims the report in the store. A worker that dies between sending
    and noting it may send it twice; none is left out.

    Raises:
        ReportError: the webhook did not take it; a call in ten minutes tries again.
        StoreError: the database is away.
    """
    now = clock()
    due = last_due(datetime.fromtimestamp(now, UTC), weekday, hour)
    key = int(due.timestamp())
    if not store.claim_report(key, now=now, lease_seconds=_LEASE):
        return False
    post(url, slack_message(read_report(store, until=due, weeks=weeks, fields=fields)))
    store.settle_report(key)
    _log.info("weekly report sent", extra={"due": due.isoformat()})
    return True


def post(url: str, message: Mapping[str, Any], *, sleep: Callable[[float], None] = time.sleep) -> None:
    """POST a message as JSON, and again where another try may help.

    Raises:
        ReportError: it was refused, or the receiver is away.
    """
    body = json.dumps(message, ensure_ascii=False).encode(errors="replace")
    for pause in (*_PAUSES, None):
        said, wait = _try(url, body)
        if said is None:
            return
        if wait is None or pause is None:
            raise ReportError(f"the webhook of ASSAY_REPORT_WEBHOOK {said}")
        sleep(min(max(pause, wait), _MOST_PAUSE))


def _try(url: str, body: bytes) -> tuple[str | None, float | None]:
    """What went wrong, None if nothing; and how long to wait at least before another try, None when none helps."""
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "assay"}
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - the settings ask for http(s)
    try:
        with _OPENER.open(request, timeout=_TIMEOUT) as answer:
            answer.read(1024)
    except urllib.error.HTTPError as error:
        with error:
            again = error.code == 429 or error.code >= 500
            return f"answered {error.code}", _seconds(error.headers.get("Retry-After")) if again else None
    except (OSError, http.client.HTTPException) as error:
        # A URLError may quote the address; its reason does not.
        reason = getattr(error, "reason", error)
        return f"cannot be reached: {type(reason).__name__}", 0.0
    return None, None


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isascii() and text.isdigit() else 0.0
