"""The vendor's OpenAPI document, held against every request and every response of REST v2."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENT = Path(__file__).with_name("openapi-v2.json")
BASE = "urn:openapi"
METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Operation:
    """One operation of the document, and the values of the path's parameters."""

    id: str
    method: str
    template: str
    spec: dict[str, Any] = field(repr=False)
    path_params: dict[str, str] = field(default_factory=dict)


class UnknownPath(Exception):
    """The document has no such path."""


class MethodNotAllowed(Exception):
    """The path has no such method; ``allow`` names those that it has."""

    def __init__(self, allow: str) -> None:
        super().__init__(allow)
        self.allow = allow


class Contract:
    """Checks against the document.

    Args:
        newer_fields: accept ``entrypoint`` and ``cmd`` too, the arrays that newer copies of the reference have
            [3p]; the published document has ``args``, one string.
    """

    def __init__(self, *, newer_fields: bool = False) -> None:
        self.document: dict[str, Any] = copy.deepcopy(json.loads(DOCUMENT.read_text()))
        if newer_fields:
            array = {"type": "array", "items": {"type": "string"}}
            container = self.document["components"]["schemas"]["BaseContainerConfig"]
            container["properties"] |= {"entrypoint": array, "cmd": array}
        resource: Resource[Any] = DRAFT202012.create_resource(self.document)
        self._registry: Registry[Any] = Registry().with_resource(BASE, resource)
        self._paths = [(_pattern(template), template) for template in self.document["paths"]]

    def match(self, method: str, path: str) -> Operation:
        """The operation that a request means; ``UnknownPath`` or ``MethodNotAllowed`` if there is none."""
        for pattern, template in self._paths:
            if (found := pattern.fullmatch(path)) is None:
                continue
            item = self.document["paths"][template]
            if method.lower() not in item:
                raise MethodNotAllowed(", ".join(name.upper() for name in METHODS if name in item))
            spec = item[method.lower()]
            return Operation(spec["operationId"], method.lower(), template, spec, found.groupdict())
        raise UnknownPath(path)

    def body_errors(self, operation: Operation, body: Any) -> list[str]:
        """What is wrong with a request's body; nothing for an operation without one."""
        if "requestBody" not in operation.spec:
            return []
        return self._errors(["paths", operation.template, operation.method, "requestBody"], body)

    def takes_body(self, operation: Operation) -> bool:
        return "requestBody" in operation.spec

    def parameters(
        self, operation: Operation, query: str, headers: Mapping[str, str]
    ) -> tuple[dict[str, Any], list[str]]:
        """The query's and the header's values by name, and what is wrong with them."""
        given = dict(parse_qsl(query, keep_blank_values=True))
        values: dict[str, Any] = {}
        errors: list[str] = []
        for entry in operation.spec.get("parameters", []):
            param = self._resolve(entry)
            name = param["name"]
            raw = given.pop(name, None) if param["in"] == "query" else headers.get(name)
            if raw is None:
                continue
            schema = self._resolve(param["schema"])
            values[name] = _convert(raw, schema)
            errors += [f"{name}: {error}" for error in self._check(param["schema"], values[name])]
        # An unknown parameter is refused like an unknown field [assumed]: a misspelt filter must not pass.
        return values, errors + [f"{name}: unknown query parameter" for name in given]

    def response_errors(self, operation: Operation, status: int, content_type: str, body: Any) -> list[str]:
        """What is wrong with an answer of ours."""
        responses = operation.spec["responses"]
        declared = self._resolve(responses.get(str(status), responses.get("default", {})))
        content = declared.get("content")
        if content is None:
            return [] if body is None else [f"{status} has no body in the document"]
        if content_type not in content:
            return [f"{status} is not {content_type} in the document"]
        return self._check(content[content_type]["schema"], body)

    def _errors(self, pointer: list[str], body: Any) -> list[str]:
        node: Any = self.document
        for part in pointer:
            node = node[part]
        return self._check(node["content"]["application/json"]["schema"], body)

    def _check(self, schema: dict[str, Any], instance: Any) -> list[str]:
        absolute = _absolute(schema)
        validator = Draft202012Validator(absolute, registry=self._registry)
        return sorted(f"{_path(error.absolute_path)}: {error.message}" for error in validator.iter_errors(instance))

    def _resolve(self, node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node:
            found: Any = self.document
            for part in node["$ref"].removeprefix("#/").split("/"):
                found = found[part.replace("~1", "/").replace("~0", "~")]
            node = found
        return node


def _absolute(schema: Any) -> Any:
    """An inline schema with its references made absolute, so that it can be used outside of the document."""
    if isinstance(schema, dict):
        return {
            key: f"{BASE}{value}" if key == "$ref" and str(value).startswith("#") else _absolute(value)
            for key, value in schema.items()
        }
    return [_absolute(part) for part in schema] if isinstance(schema, list) else schema


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template))


def _path(parts: Any) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


def _convert(raw: str, schema: dict[str, Any]) -> Any:
    """A parameter's text as the document's type; what can't be converted stays text, and fails the check."""
    kind = schema.get("type")
    if kind == "array":
        return raw.split(",")
    if kind == "integer" and re.fullmatch(r"-?\d+", raw):
        return int(raw)
    if kind == "boolean" and raw in ("true", "false"):
        return raw == "true"
    return raw
