"""Addresses of servers: read once, and with nothing in them that must not be shown. Reads and writes nothing."""

from __future__ import annotations

from urllib.parse import urlsplit


def checked(address: str) -> str:
    """The address without slashes at its end. Raises ValueError, which does not repeat it, for one
    that cannot be sent to or could hold a secret.

    What is refused: anything but http and https, a user and password, a query, a fragment,
    white space and control characters, no host, a port that is none.
    """
    if not address.startswith(("http://", "https://")):
        raise ValueError("expected an address that begins with http:// or https://, such as http://localhost:8000/v1")
    if any(c <= " " or c == "\\" or not c.isprintable() for c in address):
        raise ValueError(
            "white space, a backslash or a control character in the address; expected one such as"
            " http://localhost:8000/v1"
        )
    # Whatever has these marks is refused, since a password that holds '/', '?' or '@' is read in
    # other ways by other programs.
    if "@" in address:
        raise ValueError(
            "'@' in the address: a user's name and password do not belong there; name the environment variable that"
            " holds the key, as 'key'"
        )
    if "?" in address or "#" in address:
        raise ValueError(
            "a query or fragment in the address, which every request's path would be added to; expected the base URL"
            " alone, a key as 'key'"
        )
    try:
        parts = urlsplit(address)
        # an '@' written otherwise
        usable = bool(parts.hostname) and parts.port != 0 and ("%" not in parts.netloc or "[" in parts.netloc)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            "no host, or a port that is none, in the address; expected one such as http://localhost:8000/v1"
        )
    return address.rstrip("/")
