"""Versions, and serving one: in a container or in a child process."""
