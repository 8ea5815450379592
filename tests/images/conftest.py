"""Fixtures of the tests that build images."""

from __future__ import annotations

from tests.images.build_fixtures import bare, fresh_layer, logged_in, plan, project, small

__all__ = ["bare", "fresh_layer", "logged_in", "plan", "project", "small"]
