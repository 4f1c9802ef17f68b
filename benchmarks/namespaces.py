"""Machines on this machine: network namespaces, joined by links of limited speed and some delay.

Linux, as root, with iproute2. Packets go through a process here, which holds each back until it
would have left its sender's link and travelled, so the kernel need not know how to delay any.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import select
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context

from benchmarks.distributed_ranks import Place

_SET_NAME, _TUN, _NO_HEADER = 0x400454CA, 0x0001, 0x1000  # of linux/if_tun.h
_MOST = 9000  # bytes of a packet
_DEVICE, _NAMESPACE, _ADDRESS = "link0", "epruner{}", "10.77.0.{}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _link(name: str) -> int:
    """A network device whose packets are read from, and written to, what is returned."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _SET_NAME, struct.pack("16sH22x", name.encode(), _TUN | _NO_HEADER))
    return file


def _carry(links: Sequence[int], bits_per_second: float, seconds: float) -> None:
    """Hand on packets to the link that the last number of their address says."""
    free = [0.0] * len(links)  # when each sender's link is
    travelling: list[tuple[float, int, int, bytes]] = []
    sender = {link: q for q, link in enumerate(links)}
    count = 0
    while True:
        wait = travelling[0][0] - time.monotonic() if travelling else None
        ready, _, _ = select.select(links, [], [], wait if wait is None else max(wait, 0.0))
        now = time.monotonic()
        for link in ready:
            packet = os.read(link, _MOST)
            q, to = sender[link], packet[19] - 1
            if packet[0] >> 4 != 4 or not 0 <= to < len(links):
                continue  # not IPv4, or to nobody
            free[q] = max(free[q], now) + 8 * len(packet) / bits_per_second
            count += 1
            heapq.heappush(travelling, (free[q] + seconds, count, to, packet))
        while travelling and travelling[0][0] <= time.monotonic():
            _, _, to, packet = heapq.heappop(travelling)
            os.write(links[to], packet)


@contextmanager
def machines(count: int, bits_per_second: float, seconds: float) -> Iterator[list[Place]]:
    """Yield where to start the ranks of so many machines.

    Parameters
    ----------
    count : int
    bits_per_second : float
        What a machine sends at most.
    seconds : float
        That a packet travels.
    """
    with ExitStack() as stack:
        links, places = [], []
        for q in range(count):
            name, outside = _NAMESPACE.format(q), f"epruner{q}"
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            links.append(_link(outside))
            stack.callback(os.close, links[-1])
            _ip("link", "set", outside, "netns", name, "name", _DEVICE)
            inside = ("-n", name)
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "addr", "add", f"{_ADDRESS.format(q + 1)}/24", "dev", _DEVICE)
            _ip(*inside, "link", "set", _DEVICE, "mtu", str(_MOST), "txqueuelen", "10000", "up")
            places.append(
                Place(
                    ("ip", "netns", "exec", name),
                    (("GLOO_SOCKET_IFNAME", _DEVICE),),
                    _ADDRESS.format(1),
                )
            )
        carrier = get_context("fork").Process(
            target=_carry, args=(links, bits_per_second, seconds), daemon=True
        )
        carrier.start()
        stack.callback(carrier.join)
        stack.callback(carrier.terminate)
        yield places
