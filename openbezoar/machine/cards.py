"""How fast GPUs are by their makers' data sheets, and the shares of that which a training is assumed to reach.

Nothing here was measured: times that come of it are marked as estimated wherever they are told.
"""

from __future__ import annotations

from dataclasses import dataclass

STREAM = 0.85
"""Of a card's bandwidth, what long copies reach: assumed, as STREAM-like programs commonly do."""
LINK = 8.0e9
"""Bytes a second between two cards: half of PCIe 3.0 x16's 15.75 GB/s (PCI-SIG); the half is assumed."""


@dataclass(frozen=True)
class Speed:
    """peak: FLOP/s of dense products in 16 bits with sums in fp32; bandwidth: bytes a second of its memory.

    large: the share of the peak that products of 2,048 rows and more reach; small: of 1,024 rows. Both assumed.
    """

    peak: float
    bandwidth: float
    large: float
    small: float
    source: str

    def rate(self, rows: float) -> float:
        """FLOP/s of products of so many rows: in between the two shares from 1,024 to 2,048, in proportion below."""
        if rows < 1024:
            return self.peak * self.small * max(rows, 1) / 1024
        return self.peak * (self.small + (self.large - self.small) * min(1.0, rows / 1024 - 1))


SPEEDS = {
    # It cannot hold its clock within its 70 W.
    "T4": Speed(65e12, 320e9, 0.42, 0.37, "NVIDIA T4 data sheet"),
    "RTX 3090": Speed(71e12, 936e9, 0.87, 0.82, "NVIDIA Ampere GA102 whitepaper"),
    "RTX 4090": Speed(165.2e12, 1008e9, 0.90, 0.82, "NVIDIA Ada whitepaper"),
    "A100": Speed(312e12, 1555e9, 0.80, 0.65, "NVIDIA A100 data sheet, 40 GB"),
    "A100 80 GB": Speed(312e12, 1935e9, 0.80, 0.65, "NVIDIA A100 data sheet, 80 GB PCIe"),
    # Its power limit holds large products below the peak.
    "H100": Speed(989e12, 3350e9, 0.69, 0.53, "NVIDIA H100 data sheet, SXM"),
}
"""By the names of ``devices.CARDS``."""
