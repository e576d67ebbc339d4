"""Who may speak to the review page: its own page in a browser on this machine, or with a token.

Every request passes here first. A page of another site must not be able to read what was recorded
nor to change a label, though its visitor's browser could reach this server.
"""

import hmac
import json
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

MAX_BODY_BYTES = 1 << 20
COOKIE = "hapo_review"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware. hosts: names and ports that the page is reached by; empty: any, where a
    token is asked for instead. token: "" where none is needed.
    """

    def __init__(self, app, hosts: frozenset[str], token: str = ""):
        if not hosts and not token:
            raise ValueError("A page that is reached by any name needs a token.")
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here
        given = {name.decode("latin1"): value.decode("latin1") for name, value in scope["headers"]}
        query = parse_qs(scope["query_string"].decode("latin1"))
        if self.token and self._is_token(query.get("token", [""])[0]) and scope["path"] == "/":
            await self._welcome(send, given)
            return
        refusal = self._refusal(scope["method"], given)
        if refusal:
            await _answer(send, *refusal)
            return
        await self.app(scope, receive, _with_headers(send))

    def _refusal(self, method: str, given: dict[str, str]) -> tuple[int, str] | None:
        """(status, sentence) where the request is refused."""
        host = given.get("host", "")
        if self.hosts and host not in self.hosts:
            return 421, f"This page is not called {host[:100]!r}. Open it by the address it gave."
        if not self._same_origin(given, host):
            return 403, "Refused: this request came from the page of another site."
        if self.token and not self._is_token(_cookie(given)):
            return 401, "Open the page with the whole address that `hapo review` printed."
        if method not in ("GET", "HEAD"):
            if given.get("content-type", "").split(";")[0].strip() != "application/json":
                return 415, "Send JSON, with its content type."
            # The server sees to it that no more comes than was announced; chunks announce nothing.
            length = "" if "transfer-encoding" in given else given.get("content-length", "")
            if not (length.isdigit() and int(length) <= MAX_BODY_BYTES):
                return 413, f"Send at most {MAX_BODY_BYTES >> 20} MiB, and say how much."
        return None

    def _same_origin(self, given: dict[str, str], host: str) -> bool:
        origin = given.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return False
        # Browsers say where a request comes from; opening the page from a link is allowed.
        site = given.get("sec-fetch-site", "none")
        return site in ("none", "same-origin") or given.get("sec-fetch-mode") == "navigate"

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())

    async def _welcome(self, send, given: dict[str, str]) -> None:
        """Keep the token in a cookie, and out of the address."""
        cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        headers = HEADERS | {"location": "/", "set-cookie": cookie}
        await send({"type": "http.response.start", "status": 303, "headers": _raw(headers)})
        await send({"type": "http.response.body", "body": b""})


def _cookie(given: dict[str, str]) -> str:
    try:
        found = SimpleCookie(given.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _with_headers(send):
    async def sent(message) -> None:
        if message["type"] == "http.response.start":
            own = {name for name, _ in message["headers"]}
            added = [pair for pair in _raw(HEADERS) if pair[0] not in own]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sent


async def _answer(send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = HEADERS | {"content-type": "application/json", "content-length": str(len(body))}
    await send({"type": "http.response.start", "status": status, "headers": _raw(headers)})
    await send({"type": "http.response.body", "body": body})
