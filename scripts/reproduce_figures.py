"""Rebuild every committed figure and the README's result table from the committed run summaries: `make reproduce`."""

from pathlib import Path

from crystallized_safety.report import reproduce

if __name__ == "__main__":
    for path in reproduce(Path(__file__).resolve().parent.parent):
        print(path)
