"""Whether what a job lacks would be downloaded when it starts: asked for, never fetched."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Mapping

from signfuse_dist.preflight.finding import Finding, error, warning

TORCH_HUB = "https://download.pytorch.org/models"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "on", "yes", "true")  # as huggingface_hub reads them
_SECONDS = 5.0


def offline(environment: Mapping[str, str]) -> str | None:
    """Return the variable that keeps the model hub from being asked, None where none does."""
    for name in _OFFLINE:
        if environment.get(name, "").lower() in _TRUE:
            return f"{name}={environment[name]}"
    return None


def hub_file(model: str, revision: str | None, name: str) -> str:
    """Return the address of a model's file on the hub."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{endpoint}/{model}/resolve/{revision or 'main'}/{name}"


def why_unreachable(address: str) -> str | None:
    """Ask for a file's head and return why it cannot be had from this machine; None: it can.

    Goes through the proxies of the environment, and waits five seconds at most for each answer.
    """
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return None
    except urllib.error.HTTPError as e:
        return f"{address} answers {e.code} {e.reason}"
    except (OSError, ValueError) as e:  # an address or a proxy may be none
        return f"{address} cannot be reached ({getattr(e, 'reason', e)})"


def missing_file(what: str, value: str, fix: str, address: str | None, is_here: bool) -> Finding:
    """Return a warning where the job will download what is missing from ``address``, else an error.

    A job of another machine is not judged by this one's network.
    """
    if address is None or not is_here:
        return error(what, value, fix)
    of_hub = not address.startswith(TORCH_HUB)  # torchvision asks no variable
    why = (offline(os.environ) if of_hub else None) or why_unreachable(address)
    if why is not None:
        return error(what, f"{value}, and {why}", fix)
    later = "the job downloads it when it starts. To have it before"
    return warning(what, f"{value}: {later}", fix)
