"""Where files lie now that were elsewhere when a run's steps were made: for a run that was taken to another machine."""

from __future__ import annotations

from pathlib import Path

from openbezoar.errors import RunError
from openbezoar.store.manifests import read_object

PLACES = "places.json"


def places_of(run: Path) -> dict[str, Path]:
    """Folders by the paths that finished steps know them by; none in a run that was never moved."""
    try:
        places = read_object(run / PLACES, "a note of where files lie", "unpack the run again")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if not all(isinstance(now, str) for now in places.values()):
        raise RunError(f"{run / PLACES}: a place is no path; unpack the run again")
    return {then: (run / now).resolve() for then, now in places.items()}
