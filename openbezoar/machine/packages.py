"""The packages of this project's extras, as they are installed here, against the versions that it allows.

Reads what is installed about itself (``importlib.metadata``); imports none of the packages. The
allowed versions are pyproject.toml's, which an installed package carries with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from openbezoar.machine.extras import EXTRAS

NOT_A_USERS = ("all", "bench", "dev")  # all is the others together

KNOWN_BAD: tuple[tuple[str, str, str], ...] = (
    ("torch", "<2.6", "its restricted loader of .bin weights can be made to run code (CVE-2025-32434)"),
    ("peft", "<0.18", "it imports a class that transformers 5 no longer has"),
    ("accelerate", "<1.3", "transformers 5 imports a function that it does not have yet"),
    ("typer", "<0.16", "it cannot read this command line's options with click 8.2 and later"),
)
"""A distribution, versions of it, and what is wrong with them here; each was seen to fail, or is public."""


@dataclass(frozen=True)
class Installed:
    """A package that an extra asks for. extra: "" for the base install. found: its version, None if it
    is not there. bad: why that version must not stay, None if it may.
    """

    name: str
    extra: str
    wanted: str
    found: str | None
    bad: str | None


def packages() -> list[Installed]:
    """All packages of the base install and of each extra; none where this project is not installed itself."""
    try:
        about = metadata("openbezoar")
    except PackageNotFoundError:
        return []
    extras = ["", *(extra for extra in about.get_all("Provides-Extra") or () if extra not in NOT_A_USERS)]
    return asked(about.get_all("Requires-Dist") or (), extras)


def asked(requirements: Sequence[str], extras: Sequence[str]) -> list[Installed]:
    """The packages of requirements as a distribution's metadata has them, by extra."""
    parsed = [Requirement(text) for text in requirements]
    found = []
    for extra in extras:
        listed = {one.name.lower().replace("_", "-") for one in parsed}
        for one in parsed:
            of_extra = one.marker is not None and "extra" in str(one.marker)
            if one.name == "openbezoar" or of_extra != bool(extra):
                continue
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                found.append(_installed(one, extra))
        # what comes with another package's extra, and is the point of ours
        for name, own in EXTRAS.values():
            if own == extra == "ifeval" and name not in listed:
                found.append(_installed(Requirement(name), extra))
    return found


def _installed(requirement: Requirement, extra: str) -> Installed:
    try:
        there = version(requirement.name)
    except PackageNotFoundError:
        there = None
    wanted = str(requirement.specifier)
    return Installed(
        requirement.name, extra, wanted, there, None if there is None else why_bad(requirement.name, there, wanted)
    )


def why_bad(name: str, found: str, wanted: str) -> str | None:
    """Why a version cannot stay: it is known to be bad, or not allowed; None if it can."""
    for known, versions, reason in KNOWN_BAD:
        if known == name.lower().replace("_", "-") and _within(found, versions):
            return reason
    return None if _within(found, wanted) else f"it is not among those allowed ({wanted})"


def _within(found: str, versions: str) -> bool:
    try:
        return SpecifierSet(versions).contains(Version(found), prereleases=True)
    except InvalidVersion:  # a version of somebody's own
        return True
