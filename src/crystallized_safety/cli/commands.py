"""The command line: parse, call one function, show what came. `--help` never imports torch.

What this module does not know: what a command does. An error that the user can mend is one sentence and exit code 2.
"""

import sys
from collections.abc import Callable, Sequence

import tyro

from crystallized_safety.cli.steps import (
    extract_command,
    judge_command,
    models_command,
    report_command,
    steer_command,
)
from crystallized_safety.cli.studies import run_command, screen_command, sweep_command
from crystallized_safety.errors import CrystallizedError

__all__ = ["app", "main"]

_COMMANDS: dict[str, Callable[..., None]] = {
    "run": run_command,
    "extract": extract_command,
    "steer": steer_command,
    "sweep": sweep_command,
    "screen": screen_command,
    "judge": judge_command,
    "report": report_command,
    "models": models_command,
}

app = tyro.extras.SubcommandApp()
for _name, _command in _COMMANDS.items():
    app.command(name=_name)(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `crystallized`."""
    try:
        app.cli(prog="crystallized", args=_model_first(sys.argv[1:] if arguments is None else arguments))
    except CrystallizedError as error:
        print("error:", *str(error).split("\n"), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


def _model_first(arguments: Sequence[str]) -> list[str]:
    """`COMMAND … --model NAME`, as the experiments are called, is `COMMAND NAME …`."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--model=") else [word])]
    if "--model" not in words[1:-1]:
        return words
    at = words.index("--model", 1)
    return [words[0], words[at + 1], *words[1:at], *words[at + 2 :]]
