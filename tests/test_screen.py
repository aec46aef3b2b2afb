"""A screen gives the log-odds of the naive way, generates nothing, and computes no row twice."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy.special import logit, logsumexp

from crystallized_safety.cli import main
from crystallized_safety.config import Openers, load_openers
from crystallized_safety.engines import Scored, ScoreRow, TransformersEngine
from crystallized_safety.errors import InputError, ModelError, RunError
from crystallized_safety.models import LanguageModel, chat_tokens, decode
from crystallized_safety.prompts import load_prompts, select
from crystallized_safety.records import ScreenPoint
from crystallized_safety.report import screen_table
from crystallized_safety.study import Progress, StudyConfig, SweepConfig, grid, run_screen, screen
from naive import Asked, Push, naive_logits, naive_logprobs

Tiny = Callable[[str], LanguageModel]
MODEL = "smollm2-135m"
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
FEW = Openers(
    refusal=("I cannot", "I can't", "I am unable", "Sorry, but", "Unfortunately", "As an AI"),
    compliance=("Sure, here", "Here is", "Here are", "Certainly!", "Of course!", "As you"),
)
T_REF = ("I", "Sorry", "Unfortunately")
"""What refusals alone begin with: "As" begins compliance too."""


class Watched(TransformersEngine):
    """The real engine, which notes what it was asked."""

    asked: list[list[ScoreRow]] = []  # noqa: RUF012 - emptied for each test

    def generate(self, rows: Iterable[ScoreRow], settled: object = None) -> Iterator[Scored]:
        self.asked.append(rows := list(rows))
        yield from super().generate(rows)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with presets; few openers; what engines are asked is noted."""
    monkeypatch.chdir(tmp_path)
    for positions in ("last-prompt-token-on", "all", "generated"):
        Path(f"{positions}.yaml").write_text(yaml.safe_dump({**PRESET, "positions": positions}))
    monkeypatch.setattr(screen, "load_openers", lambda: FEW)
    monkeypatch.setattr(screen, "TransformersEngine", Watched)
    Watched.asked.clear()
    return tmp_path


@pytest.fixture
def llama(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """What every config loads."""
    lm = tiny("llama")
    monkeypatch.setattr(grid, "loaded", lambda _config, _report: lm)
    return lm


def config(
    output: str = "run",
    *,
    layers: tuple[int, ...] = (1, 2),
    kappas: tuple[float, ...] = (-1.5, 0.0, 2.0),
    positions: str = "last-prompt-token-on",
    batch_size: int | None = 48,
) -> SweepConfig:
    study = StudyConfig("tiny", f"{positions}.yaml", Path(output), batch_size=batch_size)
    return SweepConfig(study, layers, kappas)


def every(openers: Openers) -> tuple[str, ...]:
    return (*openers.refusal, *openers.compliance)


def by_place(points: Iterable[ScreenPoint]) -> dict[tuple[str, int, float], ScreenPoint]:
    return {(one.prompt_label, one.layer, one.kappa): one for one in points}


def rows_of(folder: str = "run") -> list[bytes]:
    return (Path(folder) / "scores.jsonl").read_bytes().splitlines(keepends=True)


# --- what a point is --------------------------------------------------------------------------------------------------


def naive_log_odds(lm: LanguageModel, pushes: tuple[Push, ...], text: str) -> tuple[float, float]:
    """Λ₁ from all probabilities of the first token; Λ₂ from each opener alone, each token anew."""
    asked = Asked(chat_tokens(lm, text), pushes)
    ids = {one: lm.tokenizer(one, add_special_tokens=False)["input_ids"] for one in every(FEW)}
    first = torch.softmax(naive_logits(lm, asked, ()), dim=-1)
    t_ref = sum(float(first[lm.tokenizer.convert_tokens_to_ids(token)]) for token in T_REF)
    means = {one: np.mean(naive_logprobs(lm, asked, tokens)) for one, tokens in ids.items()}
    sides = [logsumexp([means[one] for one in side]) for side in (FEW.refusal, FEW.compliance)]
    return float(logit(t_ref)), float(sides[0] - sides[1])


@pytest.mark.parametrize("positions", ["last-prompt-token-on", "all"])
def test_a_point_has_the_log_odds_of_the_naive_way(desk: Path, llama: LanguageModel, positions: str):
    points = by_place(run_screen(config(positions=positions)))
    assert len(points) == 2 * (1 + 2 * 2)
    gaps = load_file("run/recording.safetensors")["gaps"]
    prompts = load_prompts()
    seen = set()
    for label, layer, kappa in (("harmful", 1, 2.0), ("harmless", 2, -1.5), ("harmful", 2, 2.0)):
        gap = gaps[layer, 0].double()
        as_applied = (gap / gap.norm()).float().double() * gap.norm()  # a float32 vector has a float32 direction
        push = Push(layer, as_applied, "add", kappa, positions)
        texts = [one.text for one in select(prompts, label=label, split="calibrate", limit=4)]
        plain = np.array([naive_log_odds(llama, (), text) for text in texts])
        pushed = np.array([naive_log_odds(llama, (push,), text) for text in texts])
        point, baseline = points[label, layer, kappa], points[label, 0, 0.0]
        assert (point.n, point.unscored, point.position, baseline.position) == (4, 0, -1, 0)
        found = [point.next_token, point.prefix, point.next_token_shift, point.prefix_shift]
        expected = [*pushed.mean(axis=0), *(pushed - plain).mean(axis=0)]
        assert [one.value for one in found] == pytest.approx(expected, abs=1e-9)
        assert [baseline.next_token.value, baseline.prefix.value] == pytest.approx(plain.mean(axis=0), abs=1e-9)
        for one, values in zip(found, np.vstack([pushed.T, (pushed - plain).T]), strict=True):
            assert values.min() - 1e-9 <= one.low < one.value < one.high <= values.max() + 1e-9
        seen |= {round(one.value, 6) for one in found}
    assert len(seen) == 12, "the points must differ, or the comparison says nothing"


def test_the_baseline_is_measured_once_and_has_moved_nowhere(desk: Path, llama: LanguageModel):
    points = run_screen(config(layers=(2, 1, 2), kappas=(2.0, 0.0, 2.0, -2.0)))
    shape = [(one.layer, one.kappa) for one in points if one.prompt_label == "harmful"]
    assert shape == [(0, 0.0), (2, 2.0), (2, -2.0), (1, 2.0), (1, -2.0)]
    assert [(one.layer, one.kappa) for one in points if one.prompt_label == "harmless"] == shape
    for one in points:
        shifts = [one.next_token_shift, one.prefix_shift]
        assert all((shift.value, shift.low, shift.high) == (0, 0, 0) for shift in shifts) == (one.kappa == 0)
        assert math.copysign(1, one.delta) == math.copysign(1, one.kappa)


def test_no_layers_are_all_layers(desk: Path, llama: LanguageModel):
    points = run_screen(config(layers=(), kappas=(1.0,)))
    assert {one.layer for one in points if one.kappa} == {0, 1, 2, 3}


def test_where_only_new_tokens_are_steered_the_first_cannot_move(desk: Path, llama: LanguageModel):
    for one in run_screen(config(positions="generated")):
        assert one.next_token_shift.value == 0
        assert (abs(one.prefix_shift.value) > 1e-6) == (one.kappa != 0)


def test_an_answer_goes_on_where_the_template_ends(desk: Path, llama: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    """With a chat template the opener stands alone; after the plain template's colon it has its space."""
    run_screen(config())
    row = Watched.asked[0][0]
    assert [decode(llama, one) for one in row.continuations] == [*every(FEW)]
    monkeypatch.setattr(grid, "loaded", lambda *_: replace(llama, has_chat_template=False))
    run_screen(config("plain"))
    row = Watched.asked[1][0]
    assert [decode(llama, one) for one in row.continuations] == [f" {one}" for one in every(FEW)]
    whole = decode(llama, (*row.tokens, *row.continuations[0]))
    assert whole.endswith("\n\nAssistant: I cannot")
    assert llama.tokenizer(whole, add_special_tokens=False)["input_ids"] == [*row.tokens, *row.continuations[0]]


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_the_whole_grid_is_one_queue_that_generates_nothing(desk: Path, llama: LanguageModel):
    heard: list[Progress] = []
    run_screen(config(layers=()), progress=heard.append)
    [rows] = Watched.asked
    assert len(rows) == len(rows_of()) == 8 * (1 + 4 * 2)
    assert {type(row) for row in rows} == {ScoreRow}
    assert len({id(row.edits) for row in rows if row.edits}) == 8, "a condition's direction is held once"
    assert heard[0].total == pytest.approx(heard[-1].done), "the plan was right at once"
    assert heard[-1].done == pytest.approx(len(rows) + 0.8 * 8)
    assert [one.stage for one in heard] == sorted(one.stage for one in heard)


def test_openers_that_share_their_tokens_cost_no_block_pass_more(
    desk: Path, llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    """Positions that pass through a block; the last token of an opener is never read, so that a new last token is free."""
    sharing = FEW.model_copy(update={"refusal": (*FEW.refusal, "I could", "I am able", "Sorry, I", "As an American")})
    parting = FEW.model_copy(update={"refusal": (*FEW.refusal, "No, I", "Regrettably, I")})

    def passes(openers: Openers, output: str) -> int:
        seen: list[int] = []
        hook = llama.blocks[3].register_forward_hook(
            lambda _block, _inputs, output: seen.append(output[..., 0].numel())
        )
        monkeypatch.setattr(screen, "load_openers", lambda: openers)
        try:
            run_screen(config(output, batch_size=512))
        finally:
            hook.remove()
        return sum(seen)

    def read(openers: Openers) -> int:
        tokens = [llama.tokenizer(one, add_special_tokens=False)["input_ids"] for one in every(openers)]
        return len({tuple(one[:n]) for one in tokens for n in range(1, len(one))})

    n_rows, plain = 8 * 5, passes(FEW, "few")
    assert (read(sharing), read(parting) > read(FEW)) == (read(FEW), True)
    assert passes(sharing, "sharing") == plain
    assert passes(parting, "parting") == plain + n_rows * (read(parting) - read(FEW)), "each is read in every row"
    recorded = sum(len(chat_tokens(llama, one.text)) for one in _prompts("extract"))
    prompts = sum(len(chat_tokens(llama, one.text)) for one in _prompts("calibrate"))
    assert plain <= recorded + prompts + n_rows * (1 + read(FEW)), "a prompt is read once, its last token in every row"


def _prompts(split: str):
    prompts = load_prompts()
    return [one for label in ("harmful", "harmless") for one in select(prompts, label=label, split=split, limit=4)]


# --- what is on disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["inside a row", "after a row", "before the newline"])
def test_after_a_cut_only_the_missing_rows_are_computed(desk: Path, llama: LanguageModel, cut: str):
    whole = run_screen(config())
    rows = rows_of()
    assert len(rows) == 40
    kept = b"".join(rows[:17])
    torn = {"inside a row": kept + rows[17][:30], "after a row": kept, "before the newline": kept[:-1]}[cut]
    Path("run/scores.jsonl").write_bytes(torn)
    recorded = Path("run/recording.safetensors").stat().st_mtime_ns
    Watched.asked.clear()
    heard: list[Progress] = []
    again = run_screen(config(), progress=heard.append)
    assert sum(map(len, Watched.asked)) == 23
    assert rows_of()[:17] == rows[:17], "what was there is still there"
    assert sorted(map(key, rows_of())) == sorted(map(key, rows))
    assert Path("run/recording.safetensors").stat().st_mtime_ns == recorded
    assert heard[-1].done == 23
    for one, other in zip(again, whole, strict=True):
        assert one.prefix.value == pytest.approx(other.prefix.value, abs=1e-9)


def key(row: bytes) -> tuple[str, str]:
    held = json.loads(row)
    return held["prompt_id"], json.dumps(held["condition"])


def test_a_second_call_does_no_work_and_changes_no_byte(desk: Path, llama: LanguageModel):
    first = run_screen(config())
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("run").iterdir()}
    Watched.asked.clear()
    heard: list[Progress] = []
    assert run_screen(config(), progress=heard.append) == first
    assert Watched.asked == [[]]
    assert {one.done for one in heard} == {0.0}
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("run").iterdir()} == before


def test_what_the_run_asked_is_in_its_folder_and_another_question_is_refused(
    desk: Path, llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    run_screen(config())
    about = json.loads(Path("run/run.json").read_text("utf-8"))
    assert about["openers_sha256"] == FEW.sha256()
    assert about["refusal_tokens"] == [llama.tokenizer.convert_tokens_to_ids(one) for one in T_REF]
    assert (about["layers"], about["kappas"], about["position"]) == ([1, 2], [-1.5, 0.0, 2.0], -1)
    with pytest.raises(RunError, match="kappas"):
        run_screen(config(kappas=(-1.5, 3.0)))
    other = FEW.model_copy(update={"refusal": (*FEW.refusal, "No")})
    monkeypatch.setattr(screen, "load_openers", lambda: other)
    with pytest.raises(RunError, match="openers_sha256"):
        run_screen(config())


def test_a_row_without_a_number_is_unscored_and_shown(
    desk: Path, llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    """One harmful prompt breaks at layer 2, every harmless one at layer 1; means are over the others, before and after."""
    n_layers = {"harmful": 2, "harmless": 1}
    broken = {f"{one.id}": n_layers[one.label] for one in _prompts("calibrate")}
    first = _prompts("calibrate")[0].id

    class Overflows(Watched):
        def generate(self, rows: Iterable[ScoreRow], settled: object = None) -> Iterator[Scored]:
            rows = list(rows)
            layers = {row.key: row.edits[0].layer if row.edits else None for row in rows}
            for one in super().generate(rows):
                prompt_id = one.key.split("\n")[1]
                breaks = layers[one.key] == broken[prompt_id] and (prompt_id == first or layers[one.key] == 1)
                values = ((math.nan, *one.logprobs[0][1:]), *one.logprobs[1:])
                yield Scored(one.key, values if breaks else one.logprobs)

    whole = by_place(run_screen(config("whole")))
    monkeypatch.setattr(screen, "TransformersEngine", Overflows)
    points = by_place(run_screen(config()))
    text = Path("run/scores.jsonl").read_text("utf-8")
    assert "NaN" not in text
    assert text.count("null") == 2 + 4 * 2
    for place, one in points.items():
        label, layer, _ = place
        n = {("harmful", 2): 3, ("harmless", 1): 0}.get((label, layer), 4)
        assert (one.n, one.unscored) == (n, 4 - n)
        if n == 4:
            assert one == whole[place]
        assert math.isnan(one.prefix.value) == math.isnan(one.next_token_shift.low) == (n == 0)
    table = screen_table(list(points.values()))
    assert table["unscored"].tolist() == [one.unscored for one in points.values()]
    assert screen_table(run_screen(config())).equals(table), "read from disk it says the same"


# --- openers and mistakes ---------------------------------------------------------------------------------------------


def test_the_packaged_openers_begin_answers_of_two_kinds(smollm2: LanguageModel):
    openers = load_openers()
    assert len(openers.refusal) == len(openers.compliance) >= 6
    first = [
        {smollm2.tokenizer(one, add_special_tokens=False)["input_ids"][0] for one in side}
        for side in (openers.refusal, openers.compliance)
    ]
    assert not first[0] & first[1]
    assert openers.sha256() != FEW.sha256() != FEW.model_copy(update={"refusal": FEW.refusal[::-1]}).sha256()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"refusal": FEW.refusal[:5]}, "refusal"),
        ({"refusal": (*FEW.refusal, "I cannot")}, "'I cannot' stands twice"),
        ({"compliance": (*FEW.compliance, "I cannot")}, "'I cannot' stands twice"),
        ({"compliance": (*FEW.compliance, "")}, "compliance.6"),
        ({"compliance": (*FEW.compliance, " ")}, "compliance.6"),
        ({"compliance": (*FEW.compliance, "Sure ")}, "compliance.6"),
        ({"compliance": (*FEW.compliance, 7)}, "compliance.6"),
        ({"evasion": ["Well"]}, "evasion"),
    ],
)
def test_openers_that_are_none_are_one_sentence(tmp_path: Path, change: dict, said: str):
    held = {key: list(value) for key, value in {**FEW.model_dump(), **change}.items()}
    path = tmp_path / "openers.yaml"
    path.write_text(yaml.safe_dump(held))
    with pytest.raises(InputError) as error:
        load_openers(path)
    assert said in str(error.value)
    assert "openers.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"layers": (1, 4)}, ModelError, "within 0 to 3, but 4 came"),
        ({"layers": (-1,)}, ModelError, "within 0 to 3, but -1 came"),
        ({"kappas": (0.0, -0.0)}, InputError, "one of them not zero"),
        ({"kappas": ()}, InputError, "one of them not zero"),
        ({"kappas": (1.0, math.inf)}, InputError, "finite doses"),
    ],
)
def test_a_grid_that_is_none_is_one_sentence_and_nothing_is_written(
    desk: Path, llama: LanguageModel, change: dict, error: type[Exception], said: str
):
    with pytest.raises(error, match=said) as raised:
        run_screen(config(**change))
    assert "\n" not in str(raised.value)
    assert not Path("run").exists()


def test_refusals_that_begin_as_compliance_does_leave_nothing_to_ask(
    desk: Path, llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    same = Openers(
        refusal=tuple(f"I {word}" for word in ("cannot", "won't", "refuse", "decline", "object", "stop")),
        compliance=tuple(f"I {word}" for word in ("can", "will", "agree", "accept", "see", "start")),
    )
    monkeypatch.setattr(screen, "load_openers", lambda: same)
    with pytest.raises(
        InputError, match="no compliance opener begins with, but for the tokenizer of 'tiny-llama' none"
    ):
        run_screen(config())
    assert not Path("run").exists()


# --- on real weights --------------------------------------------------------------------------------------------------


def test_the_refusal_direction_moves_a_real_model_towards_refusal_openers(
    smollm2: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """κ = +2 against κ = −2 at a middle layer of SmolLM2, on the same prompts, through the command; then once more."""
    monkeypatch.chdir(tmp_path)
    Path("few.yaml").write_text(yaml.safe_dump({**PRESET, "extract_pairs": 16}))
    monkeypatch.setattr(grid, "loaded", lambda *_: smollm2)
    command = ["screen", "--layers", "20", "--kappas", "-2", "2", "--model", MODEL, "--preset", "few.yaml"]
    main([*command, "--output", "run"])
    shown = capsys.readouterr().out
    *_, last = shown.splitlines()
    assert last == "table: run/table.csv"
    head, *lines = (line.split(",") for line in Path("run/table.csv").read_text().splitlines())
    table = [dict(zip(head, line, strict=True)) for line in lines]
    assert [(one["prompts"], one["layer"], one["kappa"]) for one in table] == [
        (label, layer, kappa)
        for label in ("harmful", "harmless")
        for layer, kappa in (("", "0.0"), ("20", "-2.0"), ("20", "2.0"))
    ]
    for _, down, up in (table[:3], table[3:]):
        assert float(up["lambda2"]) > float(down["lambda2"])
        assert float(up["shift2_low"]) > 0 > float(down["shift2_high"])
    before = {path: path.stat().st_mtime_ns for path in Path("run").iterdir() if path.suffix != ".csv"}
    main([*command[:1], MODEL, *command[1:6], "--preset", "few.yaml", "--output", "run"])
    assert capsys.readouterr().out == shown
    assert {path: path.stat().st_mtime_ns for path in Path("run").iterdir() if path.suffix != ".csv"} == before
