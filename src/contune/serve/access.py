"""Who may ask: a token on every route but health, and without one nobody beyond this machine."""

import base64
import binascii
import hmac
import ipaddress
from pathlib import Path

from contune.errors import ConfigError
from contune.serve.limits import Refusal

OPEN_ROUTES = frozenset({"/health"})
LEAST_TOKEN = 16
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="contune", Basic realm="contune", charset="UTF-8"'}


def read_token(path: Path) -> str:
    """The token in a file: its only line, of at least 16 visible ASCII characters."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be read: {error}") from error
    if len(token) < LEAST_TOKEN or not all("!" <= sign <= "~" for sign in token):
        raise ConfigError(
            f"the token file {path} must hold one line of at least {LEAST_TOKEN} visible ASCII characters; make one with: "
            f"python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > {path}"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether a host name or address reaches this machine alone.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_private(host: str, token: str | None) -> None:
    """Refuse to listen beyond this machine where everyone could ask."""
    if token is None and not is_loopback(host):
        raise ConfigError(f"--host {host} is reachable from other machines; give --token-file, or listen on 127.0.0.1")


def check_access(path: str, authorization: str | None, host: str | None, token: str | None) -> None:
    """Refuse a request that does not show the token, as a bearer token or, from a browser, as a basic password.

    Without a token the `Host` header must name this machine, so that a page of another site that has its name resolve to
    127.0.0.1 cannot ask through a browser here.
    """
    if path in OPEN_ROUTES:
        return
    if token is not None:
        if not shows(authorization or "", token):
            raise Refusal(401, "this needs the token; send the header Authorization: Bearer TOKEN", CHALLENGE)
    elif not is_loopback(host_name(host or "")):
        raise Refusal(
            403, "without a token only this machine is answered; ask http://127.0.0.1, or start with --token-file"
        )


def shows(authorization: str, token: str) -> bool:
    """Whether a header holds the token; takes as long for a wrong one as for the right one.

    >>> shows("Bearer abc", "abc"), shows("Bearer abd", "abc"), shows("abc", "abc")
    (True, False, False)
    """
    scheme, _, value = authorization.partition(" ")
    given = value.strip()
    if scheme.lower() == "basic":
        given = password_of(given)
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


def password_of(value: str) -> str:
    """The password of basic credentials, whoever the user says to be.

    >>> password_of("dTphYmM=")
    'abc'
    """
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def host_name(header: str) -> str:
    """A `Host` header without its port.

    >>> host_name("127.0.0.1:8000"), host_name("[::1]:8000"), host_name("localhost")
    ('127.0.0.1', '[::1]', 'localhost')
    """
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0]
