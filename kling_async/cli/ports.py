"""Ports that another program listens on."""

from __future__ import annotations

import errno
import socket

from kling_async.errors import ConfigurationError


def is_taken(host: str, port: int) -> bool:
    """Return whether another program listens on a port."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def port_in_use(host: str, port: int, *, option: str) -> ConfigurationError:
    """Return the error for a port that another program listens on.

    Args:
        host: Address of the port.
        port: The port.
        option: Option that chooses another one.
    """
    return ConfigurationError(
        f"port {port} on {host} is in use by another program",
        advice=f"end that program, or choose another port with {option}; 0 takes a free one",
    )
