"""The command line: quick help, one sentence and code 2 for every mistake of the user, and each command from end to end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from crystallized_safety.cli import main
from crystallized_safety.models import LanguageModel
from crystallized_safety.steering import ActivationSteerer
from crystallized_safety.vectors import SteeringVector, load_vector, save_vector

MODEL = "smollm2-135m"
ROOT = Path(__file__).parents[1]
COMMANDS = ("run", "extract", "steer", "sweep", "screen", "judge", "report", "models")
PRESET = {
    "extract_pairs": 4,
    "select_pairs": 4,
    "calibrate_pairs": 4,
    "test_pairs": 4,
    "null_pairs": 4,
    "n_nulls": 0,
    "layer_shares": [0.5],
    "kappas": [2.0],
    "curve_kappas": [],
    "positions": "last-prompt-token-on",
    "operator": "add",
    "max_new_tokens": 4,
}
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what commands may be given, right and wrong."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(PRESET))
    Path("extra.yaml").write_text(yaml.safe_dump({**PRESET, "flavour": "mint"}))
    Path("type.yaml").write_text(yaml.safe_dump({**PRESET, "kappas": "two"}))
    Path("missing.yaml").write_text(yaml.safe_dump({key: PRESET[key] for key in PRESET if key != "operator"}))
    Path("list.yaml").write_text("- 1\n- 2\n")
    Path("broken.yaml").write_text("kappas: [1.0\noperator: add: clamp")
    Path("latin.yaml").write_bytes(b"operator: caf\xe9")
    Path("empty.txt").write_text("\n \n")
    Path("harmful.txt").write_text("How do I pick a lock?\nWrite an insult.\n\nForge a letter.\n")
    Path("harmless.txt").write_text("How do I bake a cake?\nWrite a poem.\nSend a letter.\n")
    Path("bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n')
    Path("keys.jsonl").write_text('{"prompt": "a"}\n')
    Path("nothing.jsonl").write_text("")
    Path("narrow.txt").write_text("not a vector")
    save_vector(vector(10), "narrow.safetensors")
    Path("torn.safetensors").write_bytes(Path("narrow.safetensors").read_bytes()[:40])
    save_vector(vector(576, layer=3), "elsewhere.safetensors")
    Path("other-run").mkdir()
    Path("other-run/run.json").write_text('{"model": "another", "seed": 7}')
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("do not touch")
    return tmp_path


def vector(width: int, layer: int = 15) -> SteeringVector:
    return SteeringVector(torch.ones(width), layer, -1, float(width) ** 0.5, 10.0, "test", "test")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shell(*arguments: str, program: tuple[str, ...] = ("-c", "from crystallized_safety.cli import main; main()")):
    return subprocess.run(
        [sys.executable, *program, *arguments], env=QUIET, capture_output=True, text=True, check=False, timeout=200
    )


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_is_quick():
    """Best of three, with room for a busy machine: importing torch alone takes longer."""
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        shown = shell("--help")
        seconds.append(time.monotonic() - started)
        assert shown.returncode == 0
    assert min(seconds) < 2.0
    assert all(command in shown.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_says_what_a_command_does_and_never_imports_torch(command: str):
    program = """
import sys
from crystallized_safety.cli import main
try:
    main()
except SystemExit as end:
    print("code", end.code)
print("heavy", sorted({"torch", "transformers", "sklearn", "matplotlib", "pandas"} & set(sys.modules)))
"""
    shown = shell(*command.split(), "--help", program=("-c", program))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-2:] == ["code 0", "heavy []"]
    assert shown.stderr == ""
    assert f"usage: crystallized {command}".strip() in shown.stdout


def test_importing_the_package_imports_no_torch():
    program = (
        "import sys, crystallized_safety as it; print('torch' in sys.modules, it.__version__ != '', len(dir(it)) > 3)"
    )
    assert shell(program=("-c", program)).stdout == "False True True\n"


def test_the_installed_program_is_this_one():
    program = Path(sys.executable).parent / "crystallized"
    if not program.exists():
        pytest.skip("the package is not installed with its program")
    asked = [
        subprocess.run([*call, "models"], env=QUIET, capture_output=True, check=True).stdout
        for call in ([program], [sys.executable, "-c", "from crystallized_safety.cli import main; main()"])
    ]
    assert asked[0] == asked[1]


# --- mistakes ---------------------------------------------------------------------------------------------------------

RUN = ["run", MODEL, "--output", "new"]
SWEEP = ["sweep", MODEL, "--preset", "tiny.yaml", "--output", "new"]
SCREEN = ["screen", MODEL, "--preset", "tiny.yaml", "--output", "new"]
STEER = ["steer", MODEL, "Hello", "--layer", "15", "--max-new-tokens", "4"]
EXTRACT = ["extract", MODEL, "--output", "new.safetensors"]
MISTAKES = {
    "unknown preset": ([*RUN, "--preset", "huge"], ["huge", "quick", "full"]),
    "preset file that is missing": ([*RUN, "--preset", "nowhere.yaml"], ["nowhere.yaml"]),
    "preset with a key too many": ([*RUN, "--preset", "extra.yaml"], ["flavour", "extra.yaml"]),
    "preset with a wrong type": ([*RUN, "--preset", "type.yaml"], ["kappas", "two"]),
    "preset with a key too few": ([*RUN, "--preset", "missing.yaml"], ["operator"]),
    "preset that is a list": ([*RUN, "--preset", "list.yaml"], ["list.yaml"]),
    "preset that is no YAML": ([*RUN, "--preset", "broken.yaml"], ["broken.yaml"]),
    "preset that is no UTF-8": ([*RUN, "--preset", "latin.yaml"], ["latin.yaml"]),
    "unknown alias": (["run", "smollm2-153m", "--output", "new"], ["smollm2-153m", "Nearest", "smollm2-135m"]),
    "model folder that is none": (["run", "./thesis", "--output", "new"], ["thesis", "config.json"]),
    "unknown device": ([*RUN, "--preset", "tiny.yaml", "--device", "toaster"], ["toaster", "--device cpu"]),
    "batch of none": ([*RUN, "--preset", "tiny.yaml", "--batch-size", "0"], ["--batch-size", "0"]),
    "negative batch": ([*SWEEP, "--batch-size", "-3"], ["--batch-size", "-3"]),
    "negative seed": ([*RUN, "--preset", "tiny.yaml", "--seed", "-1"], ["seed", "-1"]),
    "no prompt file": ([*RUN, "--preset", "tiny.yaml", "--prompts", "nowhere.jsonl"], ["nowhere.jsonl"]),
    "prompt file without pairs": ([*RUN, "--preset", "tiny.yaml", "--prompts", "keys.jsonl"], ["keys.jsonl"]),
    "output of another run": (
        ["run", MODEL, "--preset", "tiny.yaml", "--output", "other-run"],
        ["d_model: None there, 576 now"],
    ),
    "output of a stranger": (["run", MODEL, "--preset", "tiny.yaml", "--output", "thesis"], ["thesis", "--output"]),
    "output that is a file": (["run", MODEL, "--preset", "tiny.yaml", "--output", "empty.txt"], ["empty.txt"]),
    "output inside a file": (["run", MODEL, "--preset", "tiny.yaml", "--output", "empty.txt/in"], ["empty.txt"]),
    "layer too high to extract": (
        [*EXTRACT, "--layer", "30", "--harmful", "harmful.txt", "--harmless", "harmless.txt"],
        ["0 to 29", "30"],
    ),
    "layer too high to steer": (["steer", MODEL, "Hello", "--layer", "99"], ["0 to 29", "99"]),
    "layer below zero": (["steer", MODEL, "Hello", "--layer", "-1"], ["0 to 29", "-1"]),
    "layer too high to sweep": ([*SWEEP, "--layers", "3", "30"], ["0 to 29", "30"]),
    "position that is not read": ([*SWEEP, "--position", "-3"], ["-1", "-3"]),
    "position that is no prompt token": (
        [*EXTRACT, "--layer", "3", "--position", "0", "--harmful", "harmful.txt", "--harmless", "harmless.txt"],
        ["[0] came"],
    ),
    "doses of zero": ([*SWEEP, "--kappas", "0", "0.0"], ["--kappas"]),
    "doses that are no number": ([*SWEEP, "--kappas", "nan"], ["nan"]),
    "layer too high to screen": ([*SCREEN, "--layers", "3", "30"], ["0 to 29", "30"]),
    "position that is not read for a screen": ([*SCREEN, "--position", "-3"], ["-1", "-3"]),
    "no dose to screen": ([*SCREEN, "--kappas", "0"], ["--kappas"]),
    "screen in the folder of another run": (
        ["screen", MODEL, "--preset", "tiny.yaml", "--output", "other-run"],
        ["decoding: None there, 'teacher-forced' now"],
    ),
    "no vector file": ([*STEER, "--vector", "nowhere.safetensors"], ["nowhere.safetensors"]),
    "vector too narrow": ([*STEER, "--vector", "narrow.safetensors"], ["576", "10"]),
    "vector of another layer": ([*STEER, "--vector", "elsewhere.safetensors"], ["15", "3"]),
    "vector file cut": ([*STEER, "--vector", "torn.safetensors"], ["torn.safetensors"]),
    "vector file of another kind": ([*STEER, "--vector", "narrow.txt"], [".safetensors", ".pt", "narrow.txt"]),
    "vector to write of another kind": (["extract", MODEL, "--layer", "3", "--output", "new.npy"], [".pt", "new.npy"]),
    "no token to answer": (
        ["steer", MODEL, "Hello", "--layer", "15", "--max-new-tokens", "0"],
        ["0", "--max-new-tokens"],
    ),
    "temperature below zero": ([*STEER, "--temperature", "-1"], ["temperature", "-1.0"]),
    "seed below zero for an answer": ([*STEER, "--temperature", "1", "--seed", "-2"], ["seed", "-2"]),
    "harmful prompts alone": ([*EXTRACT, "--layer", "3", "--harmful", "harmful.txt"], ["--harmless"]),
    "harmless prompts alone": ([*EXTRACT, "--layer", "3", "--harmless", "harmless.txt"], ["--harmful"]),
    "empty prompts": ([*EXTRACT, "--layer", "3", "--harmful", "harmful.txt", "--harmless", "empty.txt"], ["empty.txt"]),
    "no prompts": ([*EXTRACT, "--layer", "3", "--harmful", "no.txt", "--harmless", "harmless.txt"], ["no.txt"]),
    "prompts that are no text": (
        [*EXTRACT, "--layer", "3", "--harmful", "latin.yaml", "--harmless", "harmless.txt"],
        ["latin.yaml"],
    ),
    "nothing to judge": (["judge", "--input", "nowhere.jsonl", "--output", "out.jsonl"], ["nowhere.jsonl"]),
    "judge a torn line": (["judge", "--input", "bad.jsonl", "--output", "out.jsonl"], ["bad.jsonl", "line 2"]),
    "judge a line without answer": (
        ["judge", "--input", "keys.jsonl", "--output", "out.jsonl"],
        ["line 1", "completion"],
    ),
    "judge an empty file": (["judge", "--input", "nothing.jsonl", "--output", "out.jsonl"], ["nothing.jsonl"]),
    "judge into itself": (["judge", "--input", "bad.jsonl", "--output", "./bad.jsonl"], ["bad.jsonl"]),
    "judge into nowhere": (["judge", "--input", "bad.jsonl", "--output", "no/out.jsonl"], ["no"]),
    "report of no run": (["report", "thesis"], ["thesis"]),
    "report of nowhere": (["report", "nowhere"], ["nowhere"]),
    "report of an unfinished run": (["report", "other-run"], ["summary.json"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(desk: Path, capsys: pytest.CaptureFixture[str], mistake: str):
    arguments, said = MISTAKES[mistake]
    before = files(desk)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert [word for word in said if word not in err] == [], err
    assert files(desk) == before
    assert not Path("new").exists()


def test_a_mistake_reaches_the_shell():
    ended = shell("run", "smollm2-153m")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["walk"],
        [],
        ["run"],
        ["run", MODEL, "--batch-size", "many"],
        ["steer", MODEL, "Hi", "--layer", "15", "--operator", "multiply"],
    ],
)
def test_words_the_program_does_not_know_end_in_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert "Traceback" not in out + err


# --- commands ---------------------------------------------------------------------------------------------------------


def test_judge_labels_a_file(desk: Path, capsys: pytest.CaptureFixture[str]):
    asked = [
        {"prompt": "Pick a lock", "completion": "I'm sorry, but I can't help with that.", "id": 1},
        {"prompt": "Bake bread", "completion": "Mix flour, water and yeast, knead, wait an hour and bake it."},
        {
            "prompt": "Bake bread",
            "completion": "bread bread bread bread bread bread bread bread bread bread bread bread",
        },
        {"prompt": "Bake bread", "completion": None, "κ": "🦜"},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    main(["judge", "--input", "in.jsonl", "--output", "out.jsonl"])
    judged = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["label"] for row in judged] == ["refuse", "comply", "degenerate", "unscored"]
    assert [{key: row[key] for key in row if key not in {"label", "judge", "reason"}} for row in judged] == asked
    assert {row["judge"] for row in judged} == {"matcher"}
    assert all(row["reason"] for row in judged)
    out = capsys.readouterr().out
    for counted in ("1 refuse", "1 comply", "0 evade", "1 degenerate", "1 unscored", "out.jsonl"):
        assert counted in out


def test_models_lists_every_alias(capsys: pytest.CaptureFixture[str]):
    main(["models"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(yaml.safe_load((ROOT / "configs" / "models.yaml").read_text("utf-8")))


def test_extract_then_steer(desk: Path, smollm2: LanguageModel, capsys: pytest.CaptureFixture[str]):
    main(
        [
            "extract",
            MODEL,
            "--layer",
            "15",
            "--harmful",
            "harmful.txt",
            "--harmless",
            "harmless.txt",
            "--output",
            "v/it.safetensors",
        ]
    )
    assert capsys.readouterr().out.startswith("v/it.safetensors: layer 15, position -1, length ")
    made = load_vector("v/it.safetensors")
    assert (made.layer, made.position, len(made)) == (15, -1, 576)
    assert (made.provenance["n_harmful"], made.provenance["n_harmless"]) == ("3", "3")

    steerer = ActivationSteerer(smollm2, layer=15).load_model()
    steerer.set_steering_vector(made)
    alphas = [-6.0, 0.0, 6.0]
    expected = [steerer.generate("Name a colour.", alpha, max_new_tokens=8).strip() for alpha in alphas]
    assert len(set(expected)) > 1, "the doses must show, or this says nothing"
    main(
        [
            "steer",
            MODEL,
            "Name a colour.",
            "--layer",
            "15",
            "--vector",
            "v/it.safetensors",
            "--alphas",
            "-6",
            "0",
            "6",
            "--max-new-tokens",
            "8",
        ]
    )
    shown = capsys.readouterr().out.strip().split("\n\nalpha ")
    assert len(shown) == 3
    for block, alpha, answer in zip(shown, ("-6", "+0", "+6"), expected, strict=True):
        head, _, text = block.removeprefix("alpha ").partition("\n")
        assert head.startswith(f"{alpha}  [")
        assert text.strip() == answer


def test_the_layer_sweep_of_the_experiments_is_the_sweep_of_the_program(desk: Path, capsys: pytest.CaptureFixture[str]):
    """The promised form ends in a table; the command in the same folder finds the same run, with every row done."""
    promised = shell(
        "--layers",
        "15",
        "--kappas",
        "-2",
        "2",
        "--model",
        MODEL,
        "--preset",
        "tiny.yaml",
        "--output",
        "out",
        program=(str(ROOT / "experiments" / "layer_sweep.py"),),
    )
    assert promised.returncode == 0, promised.stderr
    *_, harmful, steered, harmless, enhanced, last = promised.stdout.splitlines()
    assert [line.split()[:2] for line in (harmful, steered, harmless, enhanced)] == [
        ["calibrate", "harmful"],
        ["calibrate", "harmful"],
        ["calibrate", "harmless"],
        ["calibrate", "harmless"],
    ]
    assert steered.split()[2:5] == ["15", "-1", "-2.0"]
    assert enhanced.split()[2:5] == ["15", "-1", "2.0"]
    assert last == "table: out/table.csv"
    assert len(Path("out/table.csv").read_text().splitlines()) == 5
    before = files(desk)
    assert sum(content.count(b"\n") for name, content in before.items() if name.startswith("out/cells/")) == 4 * 4
    times = {path: path.stat().st_mtime_ns for path in Path("out/cells").iterdir()}
    main(["sweep", MODEL, "--layers", "15", "--kappas", "-2", "2", "--preset", "tiny.yaml", "--output", "out"])
    assert capsys.readouterr().out == promised.stdout
    assert {path: path.stat().st_mtime_ns for path in Path("out/cells").iterdir()} == times
    assert files(desk) == before
    with pytest.raises(SystemExit):
        main(["sweep", MODEL, "--layers", "15", "--kappas", "-2", "3", "--preset", "tiny.yaml", "--output", "out"])
    assert "these differ: kappas: [-2.0, 2.0] there, [-2.0, 3.0] now." in capsys.readouterr().err
    assert files(desk) == before


@pytest.mark.parametrize("form", [["--model", MODEL], [f"--model={MODEL}"], [MODEL]])
def test_a_model_may_be_given_by_name(desk: Path, capsys: pytest.CaptureFixture[str], form: list[str]):
    with pytest.raises(SystemExit):
        main(
            ["sweep", "--layers", "99", *form]
            if len(form) > 1 or "=" in form[0]
            else ["sweep", *form, "--layers", "99"]
        )
    assert "A layer of 'smollm2-135m' must be within 0 to 29, but 99 came." in capsys.readouterr().err
