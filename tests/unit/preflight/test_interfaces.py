"""Networks that are named and not there are errors; several without a choice are a warning."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from signfuse_dist.preflight.interfaces import GLOO, NCCL, check_interfaces, networks

TWO = {"eth0": "10.0.0.5", "ib0": "192.168.7.5"}


def test_only_networks_that_are_up_and_lead_elsewhere_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def address(text: str, family: int = socket.AF_INET) -> Any:
        return SimpleNamespace(family=family, address=text)

    monkeypatch.setattr(
        psutil,
        "net_if_addrs",
        lambda: {
            "lo": [address("127.0.0.1")],
            "ib0": [address("fe80::1", socket.AF_INET6), address("192.168.7.5")],
            "eth1": [address("10.0.1.5")],
            "docker0": [address("172.17.0.1")],
            "eth2": [address("fe80::2", socket.AF_INET6)],
        },
    )
    up = {"lo", "ib0", "docker0", "eth2"}
    names = (*up, "eth1")
    monkeypatch.setattr(
        psutil, "net_if_stats", lambda: {name: SimpleNamespace(isup=name in up) for name in names}
    )
    assert networks() == {"ib0": "192.168.7.5"}


def test_this_machine_can_be_asked() -> None:
    assert "lo" not in networks()


@pytest.mark.parametrize(
    ("variable", "value"),
    [(GLOO, "ib9"), (GLOO, "ib"), (NCCL, "mlx"), (NCCL, "=ib"), (NCCL, "^eth,ib")],
)
def test_a_network_that_is_not_here_is_an_error_with_those_that_are(
    variable: str, value: str
) -> None:
    (finding,) = check_interfaces({variable: value}, TWO, several_nodes=False)
    assert finding.level == "error"
    assert finding.what == f"{variable}={value}"
    assert "eth0 10.0.0.5, ib0 192.168.7.5" in finding.value


@pytest.mark.parametrize(
    "environment",
    [
        {GLOO: "ib0,eth0"},
        *({GLOO: "ib0", NCCL: value} for value in ("", "ib", "=ib0", "^eth", "^=eth0")),
    ],
)
def test_a_network_that_is_here_is_in_order(environment: dict[str, str]) -> None:
    (finding,) = check_interfaces(environment, TWO, several_nodes=True)
    assert (finding.level, finding.value) == ("ok", environment[GLOO])


def test_several_networks_without_a_choice_are_a_warning_where_nodes_must_meet() -> None:
    (finding,) = check_interfaces({}, TWO, several_nodes=True)
    assert finding.level == "warning"
    assert f"{GLOO}=NAME" in finding.fix
    assert check_interfaces({}, TWO, several_nodes=False) == []
    (finding,) = check_interfaces({}, {"eth0": "10.0.0.5"}, several_nodes=True)
    assert finding.level == "ok"
