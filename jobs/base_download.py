"""Brings a base of the model hub into the hub's cache on this machine, while the trainer still imports its libraries.

    python -m jobs.base_download '["REPOSITORY", "COMMIT"]'

A process of its own: a download beside imports in one process would wait for the interpreter, and they for it. It ends
with 1 for whatever went wrong, and says what; the trainer asks the hub once more, and explains it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from jobs.checkpoints import MODEL_INDEX, MODEL_WEIGHTS, TEMPLATE, TOKENIZER_FILES
from jobs.environment import end_with_parent, quiet_hub

# What loading it asks for. Some repositories hold the weights a second time, in another layout: those stay there.
FILES = ("config.json", "generation_config.json", MODEL_WEIGHTS, MODEL_INDEX, TEMPLATE, *TOKENIZER_FILES)


def main(repository: str, commit: str) -> int:
    end_with_parent()
    quiet_hub()
    from huggingface_hub import snapshot_download

    began = time.monotonic()
    try:
        folder = Path(snapshot_download(repository, revision=commit, allow_patterns=list(FILES)))
    except Exception as exc:  # the hub's library and those below it have many kinds
        print(f"the base {repository} did not come beside the imports: {type(exc).__name__}: {exc}", flush=True)
        return 1
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"the base {repository} is here: {size / 1e6:,.1f} MB in {time.monotonic() - began:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*json.loads(sys.argv[1])))
