"""What came of several types: the versions that passed, and the types whose files are not fit to be served."""

from __future__ import annotations

from dataclasses import dataclass

from cloudft.errors import VerifyError
from local.quantizing.worker import UNCHANGED
from local.serving.versions import Version


@dataclass(frozen=True)
class Refused:
    """A type whose file is not fit to be served: ``what`` is wrong with it, and the next command."""

    type: str
    what: str
    hint: str


class SomeRefused(VerifyError):
    """Of several types some were refused; ``versions`` passed and are there, the first of them is the current one."""

    def __init__(self, versions: list[Version], refused: list[Refused]) -> None:
        passed = " and ".join(version.manifest.type for version in versions)
        kept = " and ".join(version.name for version in versions)
        super().__init__(
            f"{_what(refused)}\n  {passed} passed",
            effect=f"kept: {kept}; the current model is now {versions[0].name}; run and adapter are untouched",
            hint=_hint(refused),
        )
        self.versions, self.refused = versions, refused


def all_refused(refused: list[Refused]) -> VerifyError:
    """The error where no type passed."""
    what = _what(refused) if len(refused) > 1 else refused[0].what
    return VerifyError(what, effect=UNCHANGED, hint=_hint(refused))


def _what(refused: list[Refused]) -> str:
    return "\n  ".join(f"{one.type} was refused: {one.what}" for one in refused)


def _hint(refused: list[Refused]) -> str:
    if len(refused) == 1:
        return refused[0].hint
    return "\n        ".join(f"for {one.type}: {one.hint}" for one in refused if one.hint)
