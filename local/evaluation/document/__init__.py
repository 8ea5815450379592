"""What an evaluation leaves behind, typed: ``runs/<id>/eval.json`` and ``runs/<id>/outputs-<label>.jsonl``.

Units, everywhere: a share or a ratio is a number from 0 to 1 (not per cent), an interval is of 95 %, times are
seconds, tokens and rows are counts, sha256 is 64 hexadecimal digits. Higher is better for every metric.

Import from the modules; nothing is re-exported here.
"""
