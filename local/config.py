"""``cloudft.yaml``: what a user writes. Everything has a default but the data, the base and the task.

Unknown keys are refused with the nearest right name: a misspelt ``lerning_rate`` that is ignored costs a run.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from cloudft.errors import ConfigError
from jobs.spec import MachineSpec
from local.evaluation.eval_config import JudgeConfig, LadderConfig, ReviewConfig
from local.evaluation.task_config import KINDS, TaskConfig
from local.section import Section
from local.train_config import ReplayConfig, StageConfig, TrainConfig


class CardConfig(Section):
    """What only a person can say of the data; `cloudft report` puts it into the dataset card."""

    source: str | None = Field(default=None, description="Where the examples come from.")
    license: str | None = Field(default=None, description="Licence of the data: an id such as cc-by-4.0, or words.")
    version: str | None = Field(default=None, description="Version of the data, if it has one of its own.")
    language: list[str] | str = Field(default=[], description="Language codes, such as en.")
    personal_data: str | None = Field(
        default=None, description="Whether there is personal data in it, and how you know: none, checked by …"
    )
    reviewed_by: str | None = Field(default=None, description="Who that knows the field has read the examples.")
    notes: str | None = Field(default=None, description="Anything else that a user of the data should know.")

    @property
    def languages(self) -> tuple[str, ...]:
        return (self.language,) if isinstance(self.language, str) else tuple(self.language)


class DataConfig(Section):
    """Where the examples are. One row a line: ChatML ``messages``, Alpaca, or ``prompt``/``completion``."""

    path: str = Field(description="JSON-lines file (or a JSON list) of examples.")
    holdout: float | str = Field(
        default=0.2, description="Share of the rows that training never sees, or a file of such rows."
    )
    seed: int = Field(default=7, description="Seed of the split.")
    validation: float | None = Field(
        default=None,
        ge=0,
        le=0.5,
        description="Share of the training rows that each stage is measured on and none is trained on; 0: no stage is "
        "measured; default: a twentieth, at most 64 rows.",
    )
    card: CardConfig = CardConfig()


class StoreConfig(Section):
    """An S3-compatible bucket. Keys come from the environment or the AWS profile, never from this file."""

    url: str = Field(description="s3://bucket/prefix, or a folder.")
    endpoint_url: str | None = Field(default=None, description="For R2, Ceph, MinIO and others.")
    region: str | None = None
    profile: str | None = Field(default=None, description="Profile in the AWS configuration.")


class ServeConfig(Section):
    port: int = Field(default=8080, gt=0, lt=65536)
    context: int = Field(default=4096, gt=0, description="Context of the served model, in tokens.")


class MachineConfig(Section):
    """What a rented machine must have besides its GPU, and how many GPUs one has that is not rented."""

    gpus: int = Field(
        default=1,
        ge=1,
        le=8,
        description="GPUs to train on where none is rented (local, docker, manual); without any, so many processes.",
    )
    cloud: Literal["secure", "community", "any"] = Field(default="secure", description="RunPod's kinds of host.")
    data_centers: list[str] = Field(default=[], description="Data centres to choose from; default: any.")
    disk_gb: int = Field(default=20, gt=0, description="Container disk: base, image layers and checkpoints.")
    registry: str | None = Field(default=None, description="The provider's id of the credentials of a private image.")
    secrets: dict[str, str] = Field(
        default={}, description="Environment name to the provider's own secret, such as HF_TOKEN: my_hf_token."
    )

    @field_validator("secrets")
    @classmethod
    def _names_not_tokens(cls, secrets: dict[str, str]) -> dict[str, str]:
        for variable, name in secrets.items():
            if TOKEN.match(name) or not SECRET_NAME.fullmatch(name):
                # The value is not repeated: it may be the token itself.
                raise ValueError(
                    f"{variable} must name a secret that the provider keeps (letters, digits, _), not hold its value"
                )
        return secrets

    spot: bool = Field(default=False, description="Rent interruptible machines, which are cheaper.")
    max_bid: float | None = Field(default=None, gt=0, description="Most dollars per hour for a spot machine.")
    max_rate: float | None = Field(
        default=None,
        gt=0,
        description="Most dollars per hour for any machine; stands in for a price that the provider does not tell.",
    )


class BuildConfig(Section):
    """How `cloudft build` makes the training image, and where it pushes it. Logins come from Docker's own config."""

    repository: str | None = Field(
        default=None, description="Where to push, without a tag, such as ghcr.io/me/cloudft-train."
    )
    base_image: str = Field(
        default="python:3.11-slim", description="Image with Python 3.11 or newer and pip; its digest is locked."
    )
    requirements: list[str] | str = Field(
        default=[], description="pip requirement files of this project to install besides the locked libraries."
    )
    files: list[str] | str = Field(
        default=[], description="Files and folders of this project to add; they are on PYTHONPATH. Never secrets."
    )
    args: dict[Literal["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_TRUSTED_HOST"], str] = Field(
        default={}, description="Where pip finds packages. Can be read in the image: never a password."
    )
    platform: str = Field(
        default="linux/amd64", pattern=r"^linux/[a-z0-9]+$", description="What rented machines are, whatever yours is."
    )


# What tokens of the services that people paste here begin with.
TOKEN = re.compile(r"(hf_|api_|sk-|rpa_|ak-|as-|ghp_|github_pat_|AKIA|wandb_)[A-Za-z0-9_-]{16,}")
SECRET_NAME = re.compile(r"[A-Za-z0-9_-]{1,48}")

ProviderName = Literal["local", "docker", "runpod", "modal", "auto", "manual"]
# These cost money.
RENTED: frozenset[ProviderName] = frozenset({"runpod", "modal", "auto"})


class Config(Section):
    """A project's ``cloudft.yaml``."""

    project: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", description="Lower-case letters, digits and dashes.")
    base: str = Field(description="A repository of the model hub, or a folder with a 16-bit model.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of the base; locked at submit.")
    data: DataConfig
    task: TaskConfig
    train: TrainConfig = TrainConfig()
    provider: ProviderName = Field(
        default="local",
        description="local: a process on this computer; docker: a container on this computer; runpod, modal: a "
        "rented GPU; auto: the cheapest that fits, at any of them whose account is set up; manual: a "
        "machine that you find yourself.",
    )
    image: str | None = Field(
        default=None, description="Training image by digest, for all providers but local; `cloudft build` writes it."
    )
    build: BuildConfig = BuildConfig()
    gpu: list[str] | str | None = Field(
        default=None, description="GPU to rent (A10G, 24GB, H100:2), or several in order of preference."
    )
    budget: float | None = Field(default=None, gt=0, description="Most dollars that one run may cost.")
    monthly_budget: float | None = Field(
        default=None, gt=0, description="Most dollars that all runs of a calendar month (UTC) may cost together."
    )
    machine: MachineConfig = MachineConfig()
    store: str | StoreConfig = "./store"
    # A presigned URL lives for seven days at most, and must outlive the deadline.
    max_hours: float = Field(default=24, gt=0, le=24 * 6, description="Longest a run may take.")
    boot_minutes: float = Field(
        default=15, gt=0, description="A rented machine that gives no sign of life for so long is ended."
    )
    serve: ServeConfig = ServeConfig()
    ladder: LadderConfig = LadderConfig()
    judge: JudgeConfig | None = None
    review: ReviewConfig = ReviewConfig()

    @property
    def rents(self) -> bool:
        """Whether the provider costs money."""
        return self.provider in RENTED

    @property
    def gpus(self) -> list[str]:
        """What to rent, in order of preference."""
        return [self.gpu] if isinstance(self.gpu, str) else list(self.gpu or ["24GB"])

    def machine_spec(self) -> MachineSpec:
        return MachineSpec(
            disk_gb=self.machine.disk_gb,
            data_centers=tuple(self.machine.data_centers),
            registry=self.machine.registry,
            secrets=self.machine.secrets,
        )

    def store_config(self) -> StoreConfig:
        return self.store if isinstance(self.store, StoreConfig) else StoreConfig(url=self.store)


@dataclass(frozen=True)
class Wanted:
    """What the command line says in place of ``cloudft.yaml``; None or empty leaves it as it is."""

    provider: ProviderName | None = None
    gpu: tuple[str, ...] = ()
    budget: float | None = None
    spot: bool | None = None
    max_rate: float | None = None

    def applied_to(self, config: Config) -> Config:
        """The config with these in place."""
        changes: dict[str, Any] = {}
        if self.provider:
            changes["provider"] = self.provider
        if self.gpu:
            changes["gpu"] = list(self.gpu)
        if self.budget is not None:
            changes["budget"] = self.budget
        machine = {"spot": self.spot, "max_rate": self.max_rate}
        if wanted := {name: value for name, value in machine.items() if value is not None}:
            changes["machine"] = config.machine.model_copy(update=wanted)
        return config.model_copy(update=changes)


def json_schema() -> dict[str, Any]:
    """JSON Schema of ``cloudft.yaml``, for editors."""
    schema = Config.model_json_schema(by_alias=True)
    return {**schema, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cloudft.yaml"}


class _OnceLoader(yaml.SafeLoader):
    """Safe YAML in which no key stands twice: the first value, a budget's or a whole section's, would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_config(path: Path) -> Config:
    """Read and validate a ``cloudft.yaml``.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or breaks a rule; every breach is named.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)  # noqa: S506 - it is a safe one
    except FileNotFoundError as exc:
        raise ConfigError(f"{path} is not there", hint="make a project:  cloudft init") from exc
    except (yaml.YAMLError, ValueError) as exc:  # a date that there is not is no YAMLError
        where = getattr(exc, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(exc, "problem", None) or str(exc)
        raise ConfigError(f"{path}{line}: this is not YAML: {problem}", effect=NOTHING_STARTED) from exc
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} must be a mapping of keys, but it is {'empty' if raw is None else type(raw).__name__}",
            effect=NOTHING_STARTED,
            hint="see the keys:  cloudft init --schema",
        )
    try:
        return Config.model_validate(raw)
    except ValidationError as exc:
        problems = "\n".join(f"  {line}" for line in (_explain(e, raw) for e in exc.errors()))
        raise ConfigError(
            f"{path} has {exc.error_count()} mistake{'s' if exc.error_count() > 1 else ''}:\n{problems}",
            effect=NOTHING_STARTED,
            hint="every key is described by:  cloudft init --schema",
        ) from exc


NOTHING_STARTED = "nothing was started and nothing was changed"


def _explain(error: Any, raw: Any) -> str:
    """One line for one breach; an unknown key gets the nearest right one."""
    loc = [str(part) for part in error["loc"]]
    if error["type"] == "union_tag_invalid":
        return f"{'.'.join(loc)}.kind: {_near(str(error['ctx']['tag']), list(KINDS), 'known kinds')}"
    kind = loc.pop(1) if loc[0] == "task" and len(loc) > 1 else ""
    where = ".".join(loc)
    if error["type"] != "extra_forbidden":
        own = "Value error, "  # A rule of our own is a sentence already.
        if error["msg"].startswith(own):
            return f"{where}: {error['msg'].removeprefix(own)}"
        return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}"
    names = _known_keys([p for p in loc[:-1] if p != "StoreConfig"], kind)
    return f"{where}: unknown key; {_near(loc[-1], names, 'known keys')}"


def _near(word: str, names: list[str], what: str) -> str:
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"{what}: {', '.join(names)}"


def _known_keys(path: list[str], kind: str) -> list[str]:
    """The keys that are allowed in the section at ``path``; ``kind``: of a task. Parts of a list are numbers."""
    model: type[BaseModel] = Config
    sections: dict[str, type[BaseModel]] = {
        "data": DataConfig,
        "train": TrainConfig,
        "store": StoreConfig,
        "serve": ServeConfig,
        "machine": MachineConfig,
        "build": BuildConfig,
        "ladder": LadderConfig,
        "judge": JudgeConfig,
        "review": ReviewConfig,
    }
    if path[:2] == ["train", "stages"]:
        model = StageConfig
    elif path[:2] == ["train", "replay"]:
        model = ReplayConfig
    elif path[:2] == ["data", "card"]:
        model = CardConfig
    elif path[:1] == ["task"]:
        model = KINDS.get(kind, Config)
    elif path:
        model = sections.get(path[0], Config)
    return [field.alias or name for name, field in model.model_fields.items()]
