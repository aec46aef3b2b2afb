"""The logic of the generating stages against a scripted run of cells: what is asked, what is chosen, what is compared."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from crystallized_safety.config import Preset, load_protocol
from crystallized_safety.records import BASELINE, Completion, Condition, Judgement, Label, Prompt
from crystallized_safety.study.plan import Pairs
from crystallized_safety.study.stages import (
    Calibration,
    Lab,
    Site,
    baselines_of,
    calibrate,
    dose_points,
    effects_on_test,
    null_vectors,
)
from crystallized_safety.sweep import Cell, FinishedCell
from crystallized_safety.vectors import SteeringVector

LAYERS, POSITIONS = (3, 5, 7), (-1, -4)
PRESET = Preset(
    extract_pairs=4,
    select_pairs=4,
    calibrate_pairs=20,
    test_pairs=30,
    null_pairs=10,
    n_nulls=5,
    layer_shares=(0.5,),
    kappas=(1.0, 2.0, 3.0),
    curve_kappas=(0.5, 2.0, 4.0),
    positions="last-prompt-token-on",
    operator="add",
    max_new_tokens=8,
)


def vector_at(layer: int, position: int, *, width: int = 64, gap: float = 3.0) -> SteeringVector:
    tensor = torch.randn(width, generator=torch.Generator().manual_seed(100 * layer - position))
    return SteeringVector(tensor * (gap / tensor.norm()), layer, position, gap, 12.0, "test", "fake")


def pairs(split, n: int) -> Pairs:
    def of(label):
        return tuple(
            Prompt(
                f"{split}-{label}-{i}", f"{split} {i}", label, "k", f"{split}-{i}", f"{split}-{i}", split, "s", "MIT"
            )
            for i in range(n)
        )

    return Pairs(of("harmful"), of("harmless"))


@dataclass(frozen=True)
class Push:
    """One steered cell as the rule of a fake model sees it."""

    label: str
    split: str
    layer: int
    position: int
    kappa: float
    random: bool


Rule = Callable[[Push], tuple[float, float]]
"""From a push to the shares of the outcome of its side and of broken text."""


@dataclass
class Fake:
    """A model that is a rule. Harmful prompts are refused and harmless ones answered until pushed."""

    rule: Rule
    asked: list[Cell] = field(default_factory=list)
    vectors: dict[str, SteeringVector] = field(default_factory=dict)

    def run_cells(self, cells: Sequence[Cell], vectors: Mapping[str, SteeringVector]) -> Iterable[FinishedCell]:
        self.asked += cells
        self.vectors |= vectors
        for one in reversed(cells):  # a sweep gives cells back in any order
            rows = tuple(Completion(p.id, p.text, one.condition, "", 1, True) for p in one.prompts)
            labels = self.labels(one, vectors)
            yield FinishedCell(one, rows, tuple(Judgement(label, "rule", "") for label in labels))

    def labels(self, cell: Cell, vectors: Mapping[str, SteeringVector]) -> list[Label]:
        harmful, n = cell.prompts[0].label == "harmful", len(cell.prompts)
        before, after = ("refuse", "comply") if harmful else ("comply", "refuse")
        if cell.condition == BASELINE:
            return [before] * n
        vector = vectors[cell.condition.vector]
        assert vector.layer == cell.condition.layer
        moved, broken = self.rule(
            Push(
                cell.prompts[0].label,
                cell.prompts[0].split,
                cell.condition.layer,
                vector.position,
                cell.condition.dose,
                vector.method == "random-orthogonal",
            )
        )
        spread = [
            round(moved * (i + 1)) > round(moved * i) for i in range(n)
        ]  # so that the first ten are like the rest
        labels: list[Label] = [after if one else before for one in spread]
        for i in [i for i, one in enumerate(spread) if not one][: round(broken * n)]:
            labels[i] = "degenerate"
        return labels


def lab(fake: Fake, **changes: object) -> Lab:
    preset = PRESET.model_copy(update=changes)
    return Lab(preset, load_protocol(), seed=1, vector_at=vector_at, run_cells=fake.run_cells)


TRUTH = {
    # suppress: layer 5 is best, 2 gives 0.80 of at most 0.85, and 4 would break the text
    ("harmful", 5, -4): {-0.5: (0.1, 0), -1.0: (0.4, 0), -2.0: (0.8, 0), -3.0: (0.85, 0.05), -4.0: (0.4, 0.6)},
    ("harmful", 3, -4): {-1.0: (0.1, 0), -2.0: (0.3, 0), -3.0: (0.6, 0)},
    ("harmful", 7, -4): {-1.0: (0.05, 0), -2.0: (0.85, 0.15), -3.0: (0.7, 0.3)},  # strong only where it breaks
    ("harmful", 5, -1): {-2.0: (0.5, 0)},
    # enhance: layer 7 is best and needs a dose of 1 only
    ("harmless", 7, -4): {0.5: (0.5, 0), 1.0: (0.9, 0), 2.0: (0.95, 0), 3.0: (0.95, 0), 4.0: (0.9, 0.1)},
    ("harmless", 5, -4): {1.0: (0.2, 0), 2.0: (0.6, 0), 3.0: (0.85, 0)},
    ("harmless", 7, -1): {2.0: (0.7, 0)},
}


def truth(push: Push) -> tuple[float, float]:
    if push.random:
        return (0.0, 0.0)
    return TRUTH.get((push.label, push.layer, push.position), {}).get(push.kappa, (0.0, 0.0))


def calibrated(rule: Rule = truth) -> tuple[Fake, Calibration]:
    fake = Fake(rule)
    return fake, calibrate(lab(fake), pairs("calibrate", 20), layers=LAYERS, positions=POSITIONS)


# Random directions


def test_null_vectors_are_orthogonal_as_long_as_the_gap_and_differ():
    vector = vector_at(5, -4)
    nulls = null_vectors(vector, 8, seed=0)
    assert len(nulls) == 8
    stack = torch.stack([one.tensor for one in nulls.values()]).double()
    direction = vector.tensor.double() / vector.tensor.double().norm()
    assert (stack @ direction).abs().max() < 1e-5
    torch.testing.assert_close(stack.norm(dim=1), torch.full((8,), 3.0, dtype=torch.float64), rtol=1e-5, atol=0)
    cosines = stack @ stack.T / 9.0
    assert (cosines - torch.eye(8)).abs().max() < 0.6
    assert all((one.layer, one.position, one.kappa(2.0)) == (5, -4, pytest.approx(2.0)) for one in nulls.values())
    assert all(one.delta(1.0) == pytest.approx(vector.delta(1.0)) for one in nulls.values())


def test_null_vectors_are_as_long_as_the_gap_whatever_the_vectors_own_length():
    vector = vector_at(5, -4)
    nulls = null_vectors(replace(vector, tensor=vector.tensor * 7.0), 2, seed=0)
    assert all(float(one.norm()) == pytest.approx(3.0) for one in nulls.values())


def test_the_seed_decides_the_null_vectors_and_a_layer_has_its_own():
    vector = vector_at(5, -4)

    def drawn(one, seed):
        return torch.stack([null.tensor for null in null_vectors(one, 3, seed=seed).values()])

    assert torch.equal(drawn(vector, 0), drawn(vector, 0))
    assert not torch.allclose(drawn(vector, 0), drawn(vector, 1))
    assert not torch.allclose(drawn(vector, 0), drawn(vector_at(3, -4), 0))
    assert not set(null_vectors(vector, 3, seed=0)) & set(null_vectors(vector_at(3, -4), 3, seed=0))
    more = null_vectors(vector, 5, seed=0)
    assert all(torch.equal(one.tensor, more[name].tensor) for name, one in null_vectors(vector, 3, seed=0).items())
    assert null_vectors(vector, 0, seed=0) == {}


# Calibrate


def test_calibrate_finds_the_best_position_layer_and_dose_of_each_side():
    _, found = calibrated()
    suppress, enhance = found.chosen["suppress"], found.chosen["enhance"]
    assert suppress is not None
    assert enhance is not None
    assert (suppress.position, suppress.layer, suppress.kappa) == (-4, 5, -2.0)
    assert (enhance.position, enhance.layer, enhance.kappa) == (-4, 7, 1.0)
    assert found.values == pytest.approx({"suppress": 0.8, "enhance": 0.9})
    assert (suppress.outcome, enhance.outcome) == ("comply", "refuse")
    assert suppress.delta == pytest.approx(-2.0 * 3.0 / 12.0)


def test_suppress_subtracts_from_harmful_prompts_and_enhance_adds_to_harmless_ones():
    fake, _ = calibrated()
    for one in fake.asked:
        assert len({prompt.label for prompt in one.prompts}) == 1
        sign = -1 if one.prompts[0].label == "harmful" else 1
        assert one.condition == BASELINE or one.condition.dose * sign > 0
        assert one.condition == BASELINE or (one.condition.operator, one.condition.positions) == (
            PRESET.operator,
            PRESET.positions,
        )


def test_every_position_is_screened_at_the_middle_dose_and_the_chosen_one_swept():
    fake, _ = calibrated()
    tried = [
        (one.condition.layer, fake.vectors[one.condition.vector].position, one.condition.dose)
        for one in fake.asked
        if one.condition != BASELINE and one.prompts[0].label == "harmful"
    ]
    screened = {(layer, at, -2.0) for layer in LAYERS for at in POSITIONS}
    swept = {(layer, -4, -dose) for layer in LAYERS for dose in (1.0, 3.0)}
    curve = {(5, -4, -0.5), (5, -4, -4.0)}  # at the chosen layer, without the dose that is there already
    assert set(tried) == screened | swept | curve
    assert len(tried) == len(set(tried))


def test_every_point_is_reported_once():
    _, found = calibrated()
    keys = [(one.prompt_label, one.layer, one.position, one.kappa) for one in found.points]
    assert len(keys) == len(set(keys)) == 2 * (1 + 6 + 6 + 2)
    by_key = dict(zip(keys, found.points, strict=True))
    assert not by_key["harmful", 5, -4, -4.0].coherent
    assert by_key["harmful", 5, -4, -4.0].rate.value == pytest.approx(0.4)
    assert by_key["harmless", 7, -4, 0.5].rate.value == pytest.approx(0.5)
    assert {one.split for one in found.points} == {"calibrate"}


def test_a_dose_of_the_curve_is_never_chosen():
    """The curve doses are there to be drawn: 4 would win here, had it been tried on every layer."""
    _, found = calibrated(lambda push: (0.9, 0) if push.layer == 5 and abs(push.kappa) == 4 else (0.0, 0.0))
    assert all(one is not None and abs(one.kappa) == 3.0 for one in found.chosen.values())


def test_where_nothing_moves_the_largest_coherent_dose_of_the_earliest_layer_is_tested():
    _, found = calibrated(lambda push: (0.0, 0.2 if abs(push.kappa) > 2 else 0.0))
    suppress = found.chosen["suppress"]
    assert suppress is not None
    assert (suppress.kappa, suppress.layer, suppress.position) == (-2.0, 3, -1)
    assert found.values["suppress"] == 0


def test_a_side_that_only_breaks_has_no_dose_and_no_effect():
    def rule(push):
        return (0.0, 0.5) if push.label == "harmful" else truth(push)

    fake, found = calibrated(rule)
    assert found.chosen["suppress"] is None
    assert set(found.values) == {"enhance"}
    assert set(effects_on_test(lab(fake), pairs("test", 30), found)) == {"enhance"}


def test_a_position_that_breaks_everything_is_not_preferred_to_one_that_moves_nothing():
    """At -1 all text breaks; at -4 nothing moves at the middle dose, but 3 does."""

    def rule(push):
        if push.position == -1:
            return (0.0, 1.0)
        return (0.6, 0.0) if abs(push.kappa) == 3 else (0.0, 0.0)

    _, found = calibrated(rule)
    for side in ("suppress", "enhance"):
        point = found.chosen[side]
        assert point is not None
        assert (point.position, abs(point.kappa)) == (-4, 3.0)


def test_a_side_that_breaks_does_not_cost_a_position_what_the_other_side_gains():
    """At -1 suppress moves and enhance breaks; at -4 nothing moves."""

    def rule(push):
        if push.position == -4:
            return (0.0, 0.0)
        return (0.6, 0.0) if push.label == "harmful" else (0.0, 1.0)

    _, found = calibrated(rule)
    suppress = found.chosen["suppress"]
    assert suppress is not None
    assert (suppress.position, found.chosen["enhance"]) == (-1, None)


def test_a_position_is_not_chosen_for_broken_text():
    def rule(push):
        return (0.8, 0.2) if push.position == -1 else (0.3, 0.0)

    _, found = calibrated(rule)
    assert {one.position for one in found.chosen.values() if one is not None} == {-4}


# Test


def on_test(rule: Rule = truth, **changes: object):
    _, calibration = calibrated(rule)
    fake = Fake(rule)
    return fake, calibration, effects_on_test(lab(fake, **changes), pairs("test", 30), calibration)


def test_the_splits_never_meet():
    before, _ = calibrated()
    after, _, _ = on_test()
    assert {prompt.split for one in before.asked for prompt in one.prompts} == {"calibrate"}
    assert {prompt.split for one in after.asked for prompt in one.prompts} == {"test"}
    assert not {p.id for one in before.asked for p in one.prompts} & {p.id for one in after.asked for p in one.prompts}


def test_only_the_chosen_condition_is_tested_and_each_null_is_its_twin():
    fake, calibration, _ = on_test()
    for side, label in (("suppress", "harmful"), ("enhance", "harmless")):
        point = calibration.chosen[side]
        cells = [one for one in fake.asked if one.prompts[0].label == label and one.condition != BASELINE]
        steered = [one for one in cells if fake.vectors[one.condition.vector].method != "random-orthogonal"]
        nulls = [one for one in cells if fake.vectors[one.condition.vector].method == "random-orthogonal"]
        assert [one.condition for one in steered] == [
            Condition(steered[0].condition.vector, point.layer, "add", point.kappa, "last-prompt-token-on")
        ]
        chosen = vector_at(point.layer, point.position)
        assert torch.equal(fake.vectors[steered[0].condition.vector].tensor, chosen.tensor)
        assert len(steered[0].prompts) == 30
        assert len({one.condition.vector for one in nulls}) == len(nulls) == 5
        for one in nulls:
            assert one.condition == Condition(
                one.condition.vector, point.layer, "add", point.kappa, "last-prompt-token-on"
            )
            assert one.prompts == steered[0].prompts[:10]
            assert one.max_new_tokens == steered[0].max_new_tokens
            null = fake.vectors[one.condition.vector]
            assert float(null.norm()) == pytest.approx(float(chosen.norm()), rel=1e-5)
            assert abs(float(null.tensor @ chosen.tensor)) < 1e-4


def test_effects_are_those_of_the_test_split():
    """On test the chosen dose of suppress does less than on calibrate: the winner's curse is in the numbers."""

    def rule(push):
        return (0.5, 0.0) if push.split == "test" and push.label == "harmful" and not push.random else truth(push)

    _, _, effects = on_test(rule)
    suppress, enhance = effects["suppress"], effects["enhance"]
    assert (suppress.value, suppress.calibrate_value) == pytest.approx((0.5, 0.8))
    assert (enhance.value, enhance.calibrate_value) == pytest.approx((0.9, 0.9))
    assert (suppress.layer, suppress.position, suppress.kappa) == (5, -4, -2.0)
    assert (enhance.layer, enhance.position, enhance.kappa) == (7, -4, 1.0)
    assert (suppress.side, suppress.prompt_label) == ("suppress", "harmful")
    assert (enhance.side, enhance.prompt_label) == ("enhance", "harmless")
    assert (suppress.headroom, enhance.headroom) == (1.0, 1.0)
    assert (suppress.gained, suppress.lost, suppress.steered.n) == (15, 0, 30)
    assert suppress.delta == pytest.approx(-0.5)


def test_p_comes_from_the_random_directions():
    _, _, clear = on_test()
    assert clear["suppress"].p_null == pytest.approx(1 / 6)
    assert clear["suppress"].null_effects == (0.0,) * 5
    _, _, any_push = on_test(lambda push: (0.8, 0.0))
    assert any_push["enhance"].p_null == 1.0
    assert any_push["enhance"].null_effects == pytest.approx((0.8,) * 5)


def test_without_nulls_there_is_no_p():
    fake, _, effects = on_test(n_nulls=0)
    assert effects["suppress"].p_null is None
    assert len(fake.asked) == 4


def test_sides_that_share_a_layer_do_not_mix():
    def rule(push):
        if push.layer != 5:
            return (0.0, 0.0)
        share = 0.3 if push.label == "harmful" else 0.7
        return (share / 3 if push.random else share, 0.0)

    fake, _, effects = on_test(rule)
    assert (effects["suppress"].value, effects["enhance"].value) == pytest.approx((0.3, 0.7))
    assert effects["suppress"].null_effects == pytest.approx((0.1,) * 5)
    assert effects["enhance"].null_effects == pytest.approx((0.2,) * 5)
    assert len({one.name for one in fake.asked}) == len(fake.asked) == 2 * (1 + 1 + 5)


# Shared pieces


def test_baselines_are_one_unsteered_cell_a_class():
    fake = Fake(truth)
    found = baselines_of(lab(fake), pairs("calibrate", 20))
    assert [one.condition for one in fake.asked] == [BASELINE, BASELINE]
    for side, label, kept in (("suppress", "harmful", "refuse"), ("enhance", "harmless", "comply")):
        assert found[side].point.labels == {kept: 20}
        assert (found[side].point.rate.count, found[side].point.prompt_label) == (0, label)
        assert found[side].point.coherent
        assert (found[side].point.kappa, found[side].point.delta) == (0.0, 0.0)


def test_dose_points_come_back_in_the_order_asked():
    fake = Fake(truth)
    calibration = pairs("calibrate", 20)
    sites = [Site("suppress", 5, -4, 3.0), Site("enhance", 7, -4, 1.0), Site("suppress", 5, -4, 1.0)]
    found = dose_points(lab(fake), calibration, baselines_of(lab(fake), calibration), sites)
    assert [(one.kappa, one.rate.value) for one in found["suppress"]] == [(-3.0, 0.85), (-1.0, 0.4)]
    assert [(one.kappa, one.rate.value) for one in found["enhance"]] == [(1.0, 0.9)]
