"""The packaged prompts as lists of texts; harmful and harmless twins stand at the same index."""

from crystallized_safety.prompts import load_prompts, select

_PROMPTS = load_prompts()

HARMFUL_EXTRACTION = [prompt.text for prompt in select(_PROMPTS, label="harmful", split="extract")]
HARMLESS_EXTRACTION = [prompt.text for prompt in select(_PROMPTS, label="harmless", split="extract")]
HARMFUL_EVALUATION = [prompt.text for prompt in select(_PROMPTS, label="harmful", split="test")]
BENIGN_EVALUATION = [prompt.text for prompt in select(_PROMPTS, label="harmless", split="test")]
