"""The section ``task`` of ``cloudft.yaml``: one model per kind of task, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from jobs.spec import Frozen

TextMetric = Literal["rouge1", "rouge2", "rougeL", "bleu", "chrf"]


class _Task(Frozen):
    max_tokens: Annotated[int, Field(gt=0)] = Field(default=256, description="Longest answer, in tokens.")
    primary: str | None = Field(
        default=None, description="The metric that decides whether the model got better; default: the kind's own."
    )
    metric: list[str] | str = Field(
        default=[],
        description="Your own metrics: my_metrics.py:score, called with (answer, expected, row), gives a number, "
        "true or false, or several by name.",
    )

    @property
    def own_metrics(self) -> tuple[str, ...]:
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)


class JsonTaskConfig(_Task):
    """Answers are JSON objects of a schema."""

    kind: Literal["json"] = Field(default="json", description="Answers are JSON objects of a schema.")
    json_schema: str = Field(alias="schema", description="File with the JSON schema of an answer.")
    keys: list[str] | None = Field(
        default=None,
        description="Keys whose values must match exactly; default: all properties of the schema.",
    )


class ClassificationTaskConfig(_Task):
    """Answers are one of a few labels, alone or in a JSON object with a rationale."""

    kind: Literal["classification"] = Field(description="Answers are one of a few labels.")
    labels: list[str] | None = Field(default=None, min_length=2, description="The labels; default: those in the data.")
    label_key: str = Field(default="label", description="Key of the label, where answers are JSON objects.")
    rationale_key: str = Field(default="rationale", description="Key of the rationale, where answers are JSON objects.")


class ToolsTaskConfig(_Task):
    """Answers are calls of tools: none, one, or several in parallel."""

    kind: Literal["tools"] = Field(description="Answers are calls of tools.")
    tools: str | None = Field(
        default=None, description="JSON file with the list of tools, as OpenAI's API takes it; arguments are checked."
    )
    send: bool = Field(
        default=False,
        description="Send the tools with each request, rather than have them in the prompt as the data has them.",
    )


class TextTaskConfig(_Task):
    """Answers are free text that is compared with a reference."""

    kind: Literal["text"] = Field(description="Answers are free text.")
    metrics: list[TextMetric] = Field(
        default=[], description="Further metrics: rouge1, rouge2, rougeL, bleu, chrf. Needs the extra `text`."
    )


class CodeTaskConfig(_Task):
    """Answers are the code that is missing at a mark: the last message is what stands before, the mark, and after."""

    kind: Literal["code"] = Field(description="Answers fill a hole in code.")
    hole: str = Field(default="<FILL>", min_length=1, description="What marks the hole in the last message, once.")
    ask: Literal["fim", "chat"] = Field(
        default="fim", description="fim: as fill-in-the-middle, with the model's own tokens; chat: as the data has it."
    )
    fim: tuple[str, str, str] | None = Field(
        default=None, description="Tokens before prefix, suffix and middle; default: what the model file names."
    )
    language: Literal["python"] | None = Field(
        default=None, description="Check that the filled file can be parsed in this language."
    )


def _kind(value: Any) -> Any:
    """``kind`` may be left out: a task was a JSON task before there were others."""
    kind = value.get("kind", "json") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else repr(kind)


TaskConfig = Annotated[
    Annotated[JsonTaskConfig, Tag("json")]
    | Annotated[ClassificationTaskConfig, Tag("classification")]
    | Annotated[ToolsTaskConfig, Tag("tools")]
    | Annotated[TextTaskConfig, Tag("text")]
    | Annotated[CodeTaskConfig, Tag("code")],
    Discriminator(_kind),
]
KINDS: dict[str, type[_Task]] = {
    "json": JsonTaskConfig,
    "classification": ClassificationTaskConfig,
    "tools": ToolsTaskConfig,
    "text": TextTaskConfig,
    "code": CodeTaskConfig,
}
