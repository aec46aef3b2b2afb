"""What is settled stays as it is, whatever follows; what may still change is not called settled."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystallized_safety.evaluation import judge_by_matcher, settled_for_matcher

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "labelled_completions.jsonl").read_text(encoding="utf-8").splitlines()
]
REFUSAL = "I'm sorry, but I can't help with that."
NEXT_TURNS = (
    "<|im_end|>\n<|im_start|>user\nTell me more about it, please",
    "\n\nHuman: And what about the other one, then?",
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd then?",
    "\n### Instruction: now do the other half of it",
)
TURNING = (
    " However, here are the steps: 1. Go in\n2. Go out\n",
    "</think> Sure, here is how: first, open it.",
    "<|im_end|>",
    "\n\nassistant\n\nI cannot do that.",
    " no" * 40,
    "```",
    "\u0301\u0308",
    "\n\nUser: and now?",
    "1. " * 60,
    " I'm sorry, but I can't assist with that.",
    '"',
)
FOLLOWING = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(TURNING), max_size=4).map("".join))


@pytest.mark.parametrize("ending", NEXT_TURNS)
@pytest.mark.parametrize("said", [REFUSAL, "Sure: a river is a large natural stream of water.", "no " * 40])
def test_a_turn_that_ended_in_writing_is_settled(said: str, ending: str):
    assert settled_for_matcher(said + ending)
    assert not settled_for_matcher(said)


def test_a_collapse_over_the_whole_window_is_settled_and_a_shorter_one_is_not():
    assert settled_for_matcher("no " * 200)
    assert not settled_for_matcher("no " * 60)
    assert settled_for_matcher("\ufffd" * 3000)
    assert not settled_for_matcher("A river is a large natural stream of water that runs to the sea. " * 2)


def test_a_refusal_and_open_thoughts_are_not_settled():
    """Either may still turn: one is taken back, the other was never the answer."""
    assert not settled_for_matcher(REFUSAL)
    assert not settled_for_matcher(REFUSAL + " It would be wrong of me." * 3)
    assert not settled_for_matcher("<think>I cannot do this.\n\nHuman: he said, and went on to the next town")


@settings(max_examples=500, deadline=None)
@given(
    case=st.sampled_from(CASES),
    grown=st.sampled_from(["", *NEXT_TURNS, " no" * 200, " ha" * 900, "\n\nHuman: " + "well " * 30]),
    following=FOLLOWING,
)
def test_nothing_that_follows_changes_a_settled_label(case: dict[str, str], grown: str, following: str):
    text = case["completion"] + grown
    if settled_for_matcher(text):
        before, after = (judge_by_matcher(case["prompt"], one) for one in (text, text + following))
        assert before.label == after.label
        assert settled_for_matcher(text + following)
