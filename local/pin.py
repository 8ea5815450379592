"""Sets one key of ``cloudft.yaml`` and leaves every other character as the user wrote it."""

from __future__ import annotations

import contextlib

import yaml

from cloudft.errors import ConfigError
from local.config import load_config
from local.files import write_text
from local.project import Project


def pin_image(project: Project, image: str) -> bool:
    """Set ``image`` in the project's ``cloudft.yaml``; comments, order and line ends stay. False if it was so already.

    Raises:
        ConfigError: the file is written in a way that cannot be changed safely; it is left as it is.
    """
    path = project.config_file
    if load_config(path).image == image:
        return False
    with path.open(encoding="utf-8", newline="") as src:
        text = src.read()
    changed = _with_image(text, image)
    # Whatever way the file is written in: only this key may have changed.
    safe = False
    with contextlib.suppress(yaml.YAMLError):
        old, new = yaml.safe_load(text), yaml.safe_load(changed)
        safe = isinstance(new, dict) and {**old, "image": image} == new
    if not safe:
        raise ConfigError(
            f"{path}: the key image cannot be set without touching the rest of the file",
            effect="the image is built; cloudft.yaml is as it was",
            hint=f"write it there by hand:  image: {image}",
        )
    # Through a link, so that the link stays.
    write_text(path.resolve(), changed)
    return True


def _with_image(text: str, image: str) -> str:
    """The text with the value of the top-level key ``image`` replaced, or with a new line after ``provider``."""
    end = "\r\n" if "\r\n" in text else "\n"
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    entries = {key.value: (key, value) for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
    if "image" in entries:
        key, value = entries["image"]
        # A key without a value: the value is empty and may stand anywhere after the colon.
        at, until = value.start_mark.index, value.end_mark.index
        if at == until:
            at = until = text.index(":", key.end_mark.index) + 1
        gap = "" if text[at - 1 : at] == " " else " "
        return f"{text[:at]}{gap}{image}{text[until:]}"
    if "provider" in entries:
        mark = entries["provider"][1].end_mark.index
        newline = text.find("\n", mark)
        at = len(text) if newline < 0 else newline + 1
    else:
        at = len(text)
    gap = "" if at == 0 or text[at - 1] == "\n" else end
    return f"{text[:at]}{gap}image: {image}{end}{text[at:]}"
