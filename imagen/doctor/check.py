"""Define the interface of a check."""

from collections.abc import Iterator
from typing import Protocol

from imagen.doctor.finding import Measured
from imagen.doctor.subject import Subject


class Check(Protocol):
    """Answer one question about a subject. A new check is a class with these attributes, listed in `checks.py`."""

    @property
    def name(self) -> str:
        """Return the name of the check, such as "captions"."""
        ...

    @property
    def title(self) -> str:
        """Return the question, in a few words."""
        ...

    @property
    def finds(self) -> tuple[str, ...]:
        """Return the names of all findings that the check may report."""
        ...

    @property
    def slow(self) -> bool:
        """Return whether `--quick` leaves the check out."""
        ...

    def __call__(self, subject: Subject, /) -> Iterator[Measured]:
        """Yield the measurements, one per split or stage. Raises Skip if the subject lacks what the check needs."""
        ...
