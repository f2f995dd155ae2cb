"""Asking a server on this machine: never through a proxy, whatever the environment or the system says.

A class behind a proxy has HTTP_PROXY set and NO_PROXY often not; the proxy's 127.0.0.1 is another machine.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import MutableMapping

HOSTS = ("127.0.0.1", "localhost", "::1")

# Like `urllib.request.urlopen`, without a proxy; for addresses on this machine.
urlopen = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def bypass_proxy(environment: MutableMapping[str, str] = os.environ) -> None:
    """Add this machine to NO_PROXY, which every client reads that a learner may use: openai, httpx, requests, urllib.

    Without a proxy in the environment nothing changes: NO_PROXY alone would hide the system's own proxy settings.
    """
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in environment):
        return
    given = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in environment.get(name, "").split(",")]
    hosts = ",".join(dict.fromkeys([host for host in given if host] + list(HOSTS)))
    environment["no_proxy"] = environment["NO_PROXY"] = hosts
