"""What all sections of ``cloudft.yaml`` have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Cannot be changed, and refuses keys that it does not know, and numbers that are none."""

    # YAML can say .inf and .nan: no cap on money, and no step that trains, may follow from that.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
