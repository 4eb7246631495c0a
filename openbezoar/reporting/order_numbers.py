"""What the order and the length of two answers did to verdicts, in numbers and in words."""

from __future__ import annotations

from openbezoar.reporting.results import Estimated, Record


class OrderNumbers(Record):
    """What the order and the length of two answers did to verdicts."""

    flips: Estimated | None = None
    first: Estimated | None = None
    longer: Estimated | None = None

    def sentences(self) -> list[str]:
        rates = (
            ("Verdicts that changed when the answers were swapped:", self.flips, ""),
            ("Verdicts for the answer shown first:", self.first, " (0.5 is fair)"),
            ("Decided for the longer answer:", self.longer, ""),
        )
        return [
            f"{what} {score.text()}{fair}."
            for what, share, fair in rates
            if share is not None and (score := share.score()) is not None
        ]
