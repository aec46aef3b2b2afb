"""Layer-wise steering analysis: `python experiments/layer_sweep.py --model NAME` is `crystallized sweep NAME`."""

import sys

from crystallized_safety.cli import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
