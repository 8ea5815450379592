"""The sections of ``cloudft.yaml`` for what an evaluation may do besides before and after."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from local.evaluation.address import is_address
from local.evaluation.judge_prompt import CRITERIA
from local.section import Section


class LadderConfig(Section):
    """The ladder from the base to the served endpoint: `cloudft eval --ladder`."""

    examples: int = Field(default=5, ge=0, le=100, description="Training rows that the few-shot rung shows the base.")
    seed: int = Field(default=7, description="Seed of their choice.")
    max_loss: float = Field(
        default=0.02,
        ge=0,
        description="The most that quantisation may cost of the metric that decides (0.02: two points of a hundred); "
        "above it, a finer quantisation is proposed.",
    )


class JudgeConfig(Section):
    """A model that compares the answers before and after, at any OpenAI-compatible endpoint."""

    url: str = Field(description="The endpoint's address, such as https://api.example.com/v1.")
    model: str = Field(description="The model's name there.")
    api_key_env: str | None = Field(
        default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Environment variable with the API key."
    )
    criteria: str = Field(default=CRITERIA, min_length=1, description="What makes an answer the better one.")
    reference: bool = Field(default=True, description="Show the judge the hold-out's own answer.")
    pairs: int | None = Field(default=None, gt=0, description="Judge only the first rows; default: all.")
    max_tokens: int = Field(default=512, gt=0, description="Longest verdict with its reason, in tokens.")
    workers: int | None = Field(default=None, gt=0, le=64, description="Requests at the same time; default 4.")
    price_input: float | None = Field(default=None, ge=0, description="Dollars per million tokens of a prompt.")
    price_output: float | None = Field(default=None, ge=0, description="Dollars per million tokens of an answer.")
    parameters: dict[str, Any] = Field(
        default={},
        description="More to send, or other values; null leaves one out (max_tokens: null).",
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        if not is_address(url):
            raise ValueError(
                "must be an address such as https://host/v1, without a name, a password or a key in it: it is written "
                "into reports (api_key_env names the variable that holds the key)"
            )
        return url.rstrip("/").removesuffix("/chat/completions")


class ReviewConfig(Section):
    """The person's own spot check: `cloudft review`."""

    pairs: int = Field(default=30, gt=0, description="Pairs of answers to look at.")
    seed: int = Field(default=7, description="Seed of the draw and of the sides.")
