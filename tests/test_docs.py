import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_command_line_reference_is_the_real_help():
    check = [sys.executable, "-m", "cogapp", "--check", "--diff", "docs/cli.md"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
