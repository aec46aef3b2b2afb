"""`pip install` without a clone works: the wheel carries its data, and the main job runs from it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRESET = """\
extract_pairs: 8
select_pairs: 4
calibrate_pairs: 4
test_pairs: 4
null_pairs: 4
n_nulls: 1
layer_shares: [0.5]
kappas: [2.0]
curve_kappas: []
positions: last-prompt-token-on
operator: add
max_new_tokens: 4
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_library_its_data_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    assert roots == {"crystallized_safety", f"crystallized_safety-{wheel.name.split('-')[1]}.dist-info"}
    for path in (
        "configs/models.yaml",
        "configs/openers.yaml",
        "configs/protocol.yaml",
        "configs/sweeps/quick.yaml",
        "data/prompts/pairs.jsonl",
    ):
        held = zipfile.ZipFile(wheel).read(f"crystallized_safety/resources/{path}")
        assert held == (ROOT / path).read_bytes()


def test_the_main_job_runs_from_the_wheel_without_the_clone(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "tiny.yaml").write_text(PRESET)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import crystallized_safety; "
        "print(crystallized_safety.__file__); from crystallized_safety.cli import main; "
        "main(['run', 'smollm2-135m', '--preset', 'tiny.yaml', '--output', 'run'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert done.stdout.rstrip().splitlines()[-1].startswith("verdict: readable=")
    assert (tmp_path / "run" / "report.html").stat().st_size < 2_000_000
