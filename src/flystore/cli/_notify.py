"""Tells systemd how far a service is, as ``Type=notify`` of a unit asks."""

import os
import socket


def tell_systemd(state: str) -> None:
    """Send ``READY=1`` or ``STOPPING=1`` to whoever started this process and wants to know; nothing elsewhere."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    name = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), name)
    except OSError:
        return  # a service must not fail because nobody listens
