"""The report of one run: a single HTML file that needs no network, no scripts and no other file.

Completions are hidden until the reader opens them, and are always text, never markup. What this package does not know: how
the numbers came about, and where a run folder lies.
"""

from collections.abc import Sequence
from pathlib import Path

from crystallized_safety.records import Summary
from crystallized_safety.report.completions import LabelledCompletion
from crystallized_safety.report.folder import dose_table, screen_table, write_run_report
from crystallized_safety.report.page import render
from crystallized_safety.report.published import reproduce
from crystallized_safety.store import write_whole

__all__ = ["LabelledCompletion", "dose_table", "reproduce", "screen_table", "write_report", "write_run_report"]


def write_report(summary: Summary, path: Path, completions: Sequence[LabelledCompletion] = ()) -> None:
    """Write the report to `path`; it appears whole or not at all. Raises RunError where the disk does not take it.

    The same input gives the same bytes. Of `summary.run` the heading uses `model` and `started`, and `folder` where it says
    that completions stay on disk; the rest is listed as it is. Completions are left out from the file, and the file says how many, once they would
    make it larger than 2 MB.
    """
    write_whole(path, render(summary, completions))
