"""A JSON schema that is checked against without ever fetching anything."""

from __future__ import annotations

from typing import Any

from cloudft.errors import ConfigError


class Schema:
    """Raises ``ConfigError`` if ``schema`` is no JSON schema; ``where`` names it to a person."""

    def __init__(self, schema: Any, where: str = "the task's schema") -> None:
        import jsonschema
        from referencing import Registry

        cls = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            cls.check_schema(schema)
        except jsonschema.SchemaError as exc:
            raise ConfigError(
                f"{where} is no JSON schema: {exc.message}",
                effect="nothing was measured",
                hint="correct the file that task.schema or task.tools in cloudft.yaml names",
            ) from exc
        self._where = where
        # An empty registry: a $ref to the outside must not make the evaluation fetch something from the network.
        self._validator = cls(schema, registry=Registry())

    def problem(self, value: Any) -> str:
        """Why ``value`` breaks the schema; empty if it does not. Raises ``ConfigError`` for a $ref to the outside."""
        import jsonschema
        from referencing.exceptions import Unresolvable

        try:
            error = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        except Unresolvable as exc:
            raise ConfigError(
                f"{self._where} refers to something outside itself: {exc}",
                effect="nothing was measured",
                hint="put the definition into the schema's own $defs",
            ) from exc
        if error is None:
            return ""
        where = "/".join(str(part) for part in error.absolute_path)
        return f"{where}: {error.message}" if where else str(error.message)
