"""The GPU benchmark on a CPU, with a tiny shape: who takes part, what they write, and the roofline."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.contestants.decoding import cases, continuous, ours, plain
from benchmarks.prepare import counted
from benchmarks.random_model import build
from benchmarks.roofline import Least, Rates, cached_positions, least_step, mean_prefixes

CPU = torch.device("cpu")


def test_every_contestant_has_a_speed_or_a_reason_at_every_batch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--shape", "tiny", "--device", "cpu", "--batches", "4", "8", "--new-tokens", "12", "--rounds", "2"]
    gpu.main([*words, "--repeats", "1", "--json", str(tmp_path / "gpu.json")])

    printed = capsys.readouterr().out
    told = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    by_place = {(one["contestant"], one["batch"]): one for one in told["results"]}
    assert by_place.keys() == {(name, batch) for name in gpu.CONTESTANTS for batch in (4, 8)}
    for (name, _), one in by_place.items():
        assert gpu.CONTESTANTS[name].title in printed
        if name == "graphs":
            assert one["why"] == "CUDA only"
        elif "why" in one:  # another process took the processor
            assert one["why"] == gpu.TOO_SHORT
        else:
            assert one["tokens_per_second"] > 0
            assert one["peak_bytes"] > 0
            assert one["rows"] == 2 * one["batch"]
            assert one["of_roofline"] == pytest.approx(one["least"]["seconds"] / one["step_seconds"])
            assert one["equal"] in (None, 1.0)


def test_batches_that_cannot_be_filled_are_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--shape", "tiny", "--batches", "4", "6"])
    assert "multiple of the smallest" in capsys.readouterr().err


def test_a_contestant_that_runs_out_of_memory_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setitem(gpu.CONTESTANTS, "plain", gpu.Contestant("plain generate, hook", full))
    words = ["--shape", "tiny", "--device", "cpu", "--batches", "4", "--new-tokens", "12"]
    gpu.main([*words, "--contestants", "plain", "ours", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "plain generate, hook, batch 4: out of memory: CUDA out of memory" in printed
    assert "ours " in printed or gpu.TOO_SHORT in printed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ours_and_plain_generate_write_the_same_tokens_under_the_same_steering(dtype: torch.dtype) -> None:
    lm = build("tiny", CPU, dtype)
    assert not lm.stop_ids
    sizes = {"rounds": 3, "prompt_tokens": 30, "new_tokens": 8, "n_layers": 3}
    for case in cases(lm, [4, 8], **sizes):
        with plain(lm, case, print) as run_plain, ours(lm, case, print) as run_ours:
            expected, found = run_plain(8), run_ours(8)
        common = expected.keys() & found.keys()
        assert len(expected) == len(found) == 3 * case.batch
        assert len(common) == 12
        assert {name: found[name] for name in common} == {name: expected[name] for name in common}
        assert all(len(one.tokens) == 8 and not one.finished for one in found.values())
        assert len({one.tokens for one in found.values()}) > case.batch / 2, "prompts and doses must matter"


def test_continuous_batching_writes_what_generate_writes_unsteered_and_leaves_the_model_as_it_was() -> None:
    lm = build("tiny", CPU, torch.float32)
    (case,) = cases(lm, [4], rounds=2, prompt_tokens=30, new_tokens=6, n_layers=2)
    before = lm.model.config._attn_implementation
    ids = torch.tensor([one.tokens for one in case.mixed.prompts])
    wanted = lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=lm.pad_id
    )[:, 30:].tolist()
    with continuous(lm, case, print) as run:
        found = run(6)
    for condition in case.mixed.conditions:
        for prompt, tokens in zip(case.mixed.prompts, wanted, strict=True):
            assert list(found[f"{condition.name} | {prompt.name}"].tokens) == tokens
    assert lm.model.config._attn_implementation == before


def test_the_large_shape_is_that_of_llama_8b() -> None:
    lm = build("llama-8b", torch.device("meta"), torch.bfloat16)
    parameters = counted(lm.model)
    assert parameters.total == 8_030_261_248  # as its model card says
    assert parameters.blocks + parameters.head == 8_030_261_248 - 128256 * 4096  # all but the look-up
    assert (lm.n_layers, lm.d_model, lm.dtype) == (32, 4096, torch.bfloat16)


def test_the_roofline_of_one_step_by_hand() -> None:
    # 100 parameters, 2 bytes each; 10 cached positions of 4 bytes: 240 bytes.
    work = {"parameters": 100, "element_bytes": 2, "positions": 10, "position_bytes": 4}
    # 3 rows: 600 operations. At 1000 operations and 100 bytes a second: 0.6 s against 2.4 s.
    assert least_step(rows=3, **work, rates=Rates(flops=1000, bytes=100)) == Least(2.4, "memory")
    # At 200 operations a second: 3 s against 2.4 s.
    assert least_step(rows=3, **work, rates=Rates(flops=200, bytes=100)) == Least(3.0, "compute")


def test_cached_positions_by_hand() -> None:
    # Prompts of 5 tokens, 3 new ones. Two steps: the first reads each row's last prompt token, the second also its first new
    # one, 1.5 on average, and both the 4 tokens before, once for each prefix.
    assert cached_positions(rows=2, prefixes=2, prompt_tokens=5, new_tokens=3) == 2 * 4 + 2 * 1.5
    assert cached_positions(rows=2, prefixes=1, prompt_tokens=5, new_tokens=3) == 1 * 4 + 2 * 1.5


def test_prefixes_of_a_batch_by_hand() -> None:
    # Prompts a b c d under 3 conditions, 4 rows a batch: aaab bbcc cddd.
    assert mean_prefixes(prompts=4, conditions=3, batch=4) == 2
    # Under 6 conditions: aaaa aabb bbbb cccc ccdd dddd.
    assert mean_prefixes(prompts=4, conditions=6, batch=4) == pytest.approx((1 + 2 + 1 + 1 + 2 + 1) / 6)
