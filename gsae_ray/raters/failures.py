"""Why a server has sent no answer, in words: libraries tell it with their own objects, nested and long."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator

import requests

from gsae_ray.errors import first_line


def why_no_answer(error: requests.RequestException) -> str:
    """The reason of an error of `requests`, in a few words."""
    causes = [*_causes(error)]
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy cannot be reached"
    if any(isinstance(cause, requests.Timeout | TimeoutError) for cause in causes):
        return "timed out"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "connection refused; is the server running?"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "no host of this name is found"
    if tls := [cause for cause in causes if isinstance(cause, ssl.SSLError)]:
        return f"no TLS: {tls[-1].reason or first_line(tls[-1])}; is it https?"
    if broke_off(error):
        return "the connection broke"
    if any(isinstance(cause, http.client.HTTPException) for cause in causes):
        return "what is there does not speak HTTP"
    system = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    return system[-1].lower() if system else first_line(error)


def nobody_there(error: requests.RequestException) -> bool:
    """Whether no server was reached, which another try does not mend."""
    if isinstance(error, requests.ConnectTimeout):
        return True
    timed_out = any(isinstance(cause, TimeoutError) for cause in _causes(error))
    return isinstance(error, requests.ConnectionError) and not timed_out and not broke_off(error)


def broke_off(error: requests.RequestException) -> bool:
    """Whether there was a connection, which has ended before the answer did."""
    if isinstance(error, requests.exceptions.ProxyError):
        return False
    broken = requests.exceptions.ChunkedEncodingError | ConnectionResetError | ConnectionAbortedError | BrokenPipeError
    return any(isinstance(cause, broken) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it, the last one the first that happened."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
