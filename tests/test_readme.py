"""What the README promises is run: its quick start word for word on real weights, its commands, its table."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crystallized_safety.cli import app
from crystallized_safety.prompts import load_prompts
from crystallized_safety.report import reproduce

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMISED_MODEL = "meta-llama/Meta-Llama-3.1-8B-Instruct"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_quick_start_runs_word_for_word_with_another_model():
    first, second = _blocks("python")
    code = (first + second).replace(PROMISED_MODEL, "smollm2-135m")
    assert code.count("smollm2-135m") == 2
    shown = "\nprint(len(vector), vector.layer, bool(response.strip()))"
    done = subprocess.run([sys.executable, "-c", code + shown], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["576", "15", "True"]


@pytest.mark.parametrize("name", ["steering", "extraction", "evaluation", "models"])
def test_the_promised_modules_of_a_clone_are_front_doors_to_the_library(name: str):
    code = f"import src.{name} as door, crystallized_safety.{name} as room; print(all(getattr(door, n) is getattr(room, n) for n in room.__all__), len(room.__all__))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    same, count = done.stdout.split()
    assert same == "True"
    assert int(count) > 0


def test_every_command_of_the_readme_exists():
    shown = re.findall(r"crystallized (\w+)", "\n".join(_blocks("bash")))
    assert shown
    assert set(shown) <= set(app._subcommands)


def test_make_targets_that_are_promised_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "check", "bench", "docs", "reproduce", "ci"):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    recipes = re.findall(r"^\w[\w./]*:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert max(recipe.count("\n") for recipe in recipes) <= 3


def test_ci_calls_the_test_command_of_the_readme_and_nothing_else():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in script if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make test"]
    assert "make test" in README


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_figures_and_table_are_what_the_committed_summaries_say(tmp_path: Path):
    shutil.copytree(ROOT / "results" / "published", tmp_path / "results" / "published")
    shutil.copy(ROOT / "README.md", tmp_path)
    written = [path.relative_to(tmp_path) for path in reproduce(tmp_path)]
    assert len(written) > 4
    for path in written:
        assert (tmp_path / path).read_bytes() == (ROOT / path).read_bytes(), f"{path} is not current: make reproduce"


def test_no_published_file_holds_a_completion():
    files = [path for path in (ROOT / "results" / "published").rglob("*") if path.is_file()]
    assert files
    prompts = [one.text for one in load_prompts()]
    for path in files:
        assert path.name in {"summary.json", "table.csv"}
        text = path.read_text(encoding="utf-8")
        assert '"completion"' not in text
        assert not [prompt for prompt in prompts if prompt in text]
