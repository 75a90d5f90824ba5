"""The networks of this machine, and which of them the processes of several nodes meet through.

gloo, which counts clips and steps of every run, takes the network that the machine's own name
stands for unless ``GLOO_SOCKET_IFNAME`` names one; NCCL's sockets take one that is fast unless
``NCCL_SOCKET_IFNAME`` does. On nodes with several networks the first choice can be one through
which other nodes are not reached, and the run ends before its first step.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

import psutil

from signfuse_dist.preflight.finding import Finding, error, ok, warning

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
# Of containers and virtual machines on this machine: other nodes are not reached through them.
_INNER = ("lo", "docker", "veth", "virbr", "br-", "cni", "flannel", "podman")


def networks() -> dict[str, str]:
    """Return the interfaces that are up and have an IPv4 address to other machines, by name."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return {
        name: address.address
        for name, addresses in sorted(psutil.net_if_addrs().items())
        for address in addresses
        if name in up and address.family == socket.AF_INET and not name.startswith(_INNER)
    }


def check_interfaces(
    environment: Mapping[str, str], here: Mapping[str, str], several_nodes: bool
) -> list[Finding]:
    """Compare what the environment names with the interfaces that are ``here``.

    A choice that is not made is a warning, and only where several nodes must meet.
    """
    findings = [
        error(
            f"{variable}={environment[variable]}",
            f"no network of that name on {socket.gethostname()}, which has {_said(here)}",
            "Name one of these, the same on every node (slurm/site.sh), or leave it out",
        )
        for variable, matches in ((GLOO, _gloo), (NCCL, _nccl))
        if environment.get(variable) and not any(matches(environment[variable], n) for n in here)
    ]
    if findings or not several_nodes:
        return findings
    if len(here) > 1 and not environment.get(GLOO):
        return [
            warning(
                "network between the nodes",
                f"{socket.gethostname()} has several ({_said(here)}) and {GLOO} names none",
                f"Where processes do not meet: export {GLOO}=NAME and {NCCL}=NAME in slurm/site.sh",
            )
        ]
    return [ok("network between the nodes", environment.get(GLOO) or _said(here))]


def _said(here: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {address}" for name, address in here.items()) or "none"


def _gloo(value: str, name: str) -> bool:
    return name in value.split(",")


def _nccl(value: str, name: str) -> bool:
    """Whether NCCL takes ``name``: by its beginning, after ``=`` wholly, after ``^`` any other."""
    unlike, exact = value.startswith("^"), value.lstrip("^").startswith("=")
    words = value.lstrip("^=").split(",")
    named = name in words if exact else name.startswith(tuple(words))
    return named != unlike
