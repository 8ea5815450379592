"""The demo's tiny model, its task and its project."""
