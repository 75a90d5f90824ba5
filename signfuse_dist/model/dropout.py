"""Dropout whose masks follow from the clip: the same alone, beside others, and anywhere.

Paper: no word of dropout. Here: none by default, ``model.dropout`` on request, at what CMFA adds to
its residual and what its feed-forward network adds, at what HTA's attention adds, inside the SLA's
network and before the residual of each ST-GCN layer; attention weights are not dropped. Because: a
corpus of sign language has thousands of sentences and the model tens of millions of weights.

A mask is a hash of the clip's key (``SignBatch.draws``, from seed, epoch and clip), the layer, the
step and the channel. So it depends on no process, neighbour or padding, a run that goes on draws
what it would have drawn, and what is computed again for its gradient finds the mask that it had. A
layer that a pass runs several times, as CMFA for Eq. 21, has one mask for all of them. In the
ST-GCN one draw holds for all joints of a step.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_BITS = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9


class ClipDropout(nn.Module):
    """In training zeroes each value with probability p, and scales the others by 1 / (1 - p).

    Attributes:
        rate: p, see :func:`set_dropout`.
        keys: int64 ``[batch]``, what the masks of the clips are drawn from, inside :func:`drawn`.
    """

    def __init__(self, rate: float = 0.0, name: str = "") -> None:
        super().__init__()
        self.rate = rate
        self.keys: Tensor | None = None
        self.salt = zlib.crc32(name.encode())

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, steps, channels]``, or ``[batch, channels, steps, joints]``, to the same.

        Raises ValueError in training where nobody said what the clips' masks are drawn from.
        """
        if not self.training or not self.rate:
            return x
        if self.keys is None or len(self.keys) != len(x):
            raise ValueError("dropout draws by clip, and the batch has no key (draws) a clip here")
        steps, channels = (x.shape[1], x.shape[2]) if x.ndim == 3 else (x.shape[2], x.shape[1])
        kept = self._numbers(steps, channels) >= int(self.rate * 2**32)
        if x.ndim == 4:
            kept = kept.transpose(1, 2)[..., None]
        return torch.where(kept, x / (1 - self.rate), 0)

    def _numbers(self, steps: int, channels: int) -> Tensor:
        """Return numbers from 0 to 2^32 - 1, int64 ``[batch, steps, channels]``."""
        keys = self.keys
        assert keys is not None
        of_clip = _mixed((keys & _BITS) ^ _mixed(((keys >> 32) & _BITS) ^ self.salt))
        step = torch.arange(steps, device=keys.device) * _GOLDEN & _BITS
        channel = _mixed(torch.arange(1, channels + 1, device=keys.device) * _GOLDEN & _BITS)
        of_step = _mixed(of_clip[:, None] ^ step)
        return _mixed(of_step[:, :, None] ^ channel)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"rate={self.rate}"


def set_dropout(model: nn.Module, rate: float) -> None:
    """Let every :class:`ClipDropout` of ``model`` have a rate, each masks of its own."""
    for name, module in model.named_modules():
        if isinstance(module, ClipDropout):
            module.rate, module.salt = rate, zlib.crc32(name.encode())


@contextmanager
def drawn(model: nn.Module, keys: Tensor | None) -> Iterator[None]:
    """Draw the masks of the clips inside the block from their keys, int64 ``[batch]``."""
    modules = [module for module in model.modules() if isinstance(module, ClipDropout)]
    for module in modules:
        module.keys = keys
    try:
        yield
    finally:
        for module in modules:
            module.keys = None


def _mixed(x: Tensor) -> Tensor:
    """Return the 32 bits of lowbias32 (Wellons, 2018) of 32 bits in int64."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _BITS
    x = (x ^ (x >> 15)) * 0x846CA68B & _BITS
    return x ^ (x >> 16)
