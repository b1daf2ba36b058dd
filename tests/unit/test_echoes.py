"""What servers quote of us is not repeated."""

from __future__ import annotations

import json
from base64 import b64encode
from html import escape
from urllib.parse import quote

import pytest

from assay.echoes import Credentials, Texts
from assay.errors import SourceError
from assay.exporter import _QUERY
from assay.pull._http import Http as PullHttp
from assay.sinks._http import Http
from assay.sinks.otel import OpenTelemetry
from planted import Search, planted, secret
from sink_server import Request, SinkServer, an_annotation

KEY = secret("a key", "sk-")
PASSWORD = secret("a password") + '/&"'


@pytest.mark.parametrize(
    "quoted",
    [
        KEY,
        f"Bearer {KEY}",
        KEY[:20],
        quote(KEY, safe=""),
        json.dumps(KEY),
        PASSWORD,
        quote(PASSWORD, safe=""),
        escape(PASSWORD),
        json.dumps(PASSWORD),
        json.dumps(PASSWORD).replace("/", "\\/"),
        f"user:{PASSWORD}",
        b64encode(f"user:{PASSWORD}".encode()).decode(),
    ],
)
def test_no_form_of_a_credential_is_left(quoted: str) -> None:
    credentials = Credentials(f"Bearer {KEY}", None, url=f"https://user:{quote(PASSWORD, safe='')}@host.example/path")
    search = Search(planted({"key": KEY, "password": PASSWORD}, {}))
    shown = credentials.hidden(f"refused ({quoted}), sorry")
    search.look("shown", "", shown)
    assert not search.leaks
    assert shown.startswith("refused (")
    assert "[secret]" in shown
    assert shown.endswith("sorry")


def test_without_credentials_nothing_is_hidden() -> None:
    assert Credentials(None, "", "x", url="https://host.example").hidden("x of host.example") == "x of host.example"


def test_what_is_quoted_of_a_text_is_left_out() -> None:
    text = 'Wie hoch ist die Gebühr, "Herr Meier"?\nEs sind 5 Euro und 20 Cent für Sie.'
    for written in (text, json.dumps(text), json.dumps(json.dumps(text)), " ".join(text.split()), text[10:50]):
        shown = Texts([None, "", text]).hidden(f"HTTP 400: bad request: {written}; mend it")
        assert shown.startswith("HTTP 400: bad request: ")
        assert "[text]" in shown
        assert shown.endswith("; mend it")
        assert not any(word in shown for word in ("Meier", "hoch ist", "Cent"))


def test_ordinary_words_of_a_message_stay() -> None:
    said = "HTTP 401: Incorrect API key provided: [secret] (invalid_api_key)"
    assert Texts(["Why is my API key incorrect?", "It was provided twice."]).hidden(said) == said
    assert Texts(["approved!"]).hidden("the reply is approved") == "the reply is [text]"


def echo(request: Request) -> tuple[int, dict[str, str], bytes]:
    said = f"you sent {request.headers.get('authorization')}"
    body = {"partialSuccess": {"rejectedLogRecords": "1", "rejectedSpans": "1", "errorMessage": said}}
    status = 200 if request.path.startswith("/v1") else 403
    return status, {"content-type": "application/json"}, json.dumps(body).encode()


def test_a_partial_success_that_quotes_the_key_is_not_repeated() -> None:
    with SinkServer(echo) as server:
        sink = OpenTelemetry(Http("otel", server.url, headers={"authorization": f"Bearer {KEY}"}), encoding="json")
        (result,) = sink.deliver([an_annotation()])
        sink.close()
    assert KEY not in str(result)
    assert "you sent [secret]" in str(result)


def test_a_source_that_quotes_the_key_is_not_repeated() -> None:
    with SinkServer(echo) as server:
        http = PullHttp("phoenix", server.url, headers={"authorization": f"Bearer {KEY}"})
        with pytest.raises(SourceError) as raised:
            http.get("/traces")
        http.close()
    assert KEY not in str(raised.value)
    assert "[secret]" in str(raised.value)


def test_the_exporter_logs_no_query() -> None:
    assert _QUERY.sub("?…", f"GET /metrics?token={KEY} HTTP/1.1") == "GET /metrics?… HTTP/1.1"
