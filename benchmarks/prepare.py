"""Make a task folder: `python -m benchmarks.prepare FOLDER PLAN`, where PLAN is a `Plan` as JSON.

Runs in a process of its own, because a child's peak memory is counted from its parent's on some systems, and the parent of
the contestants must stay small. What this module does not know: contestants.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.limit import Parameters
from benchmarks.work import Condition, Plan, Prompt, Work
from crystallized_safety.extraction import difference_in_means, record_prompts
from crystallized_safety.models import LanguageModel, chat_tokens, load, resolve, serve
from crystallized_safety.prompts import load_prompts, select

__all__ = ["conditions", "counted", "layers", "prepare"]

N_EXTRACTED = 16
"""Prompts of each label that a vector is made of, from the extract split."""


def main() -> None:
    told = json.loads(sys.argv[2])
    plan = Plan(**{**told, "doses": tuple(told["doses"]), "positions": tuple(told["positions"])})
    torch.set_num_threads(plan.threads)
    prepare(plan, Path(sys.argv[1]))


def prepare(plan: Plan, folder: Path) -> None:
    """Write model, parameters, vectors and one `Work` per kind of positions."""
    lm = load(plan.model, dtype="float32", device="cpu")
    chosen = layers(lm.n_layers, plan.n_layers)
    link_model(serve(resolve(plan.model)).folder, folder / "model")
    save_file({str(layer): vector for layer, vector in vectors(lm, chosen).items()}, folder / "vectors.safetensors")
    (folder / "parameters.json").write_text(json.dumps(asdict(counted(lm.model))), "utf-8")
    packaged = load_prompts()
    prompts = select(packaged, label="harmful", split="calibrate", limit=plan.n_prompts)
    for positions in plan.positions:
        Work(
            model=plan.model,
            n_layers=lm.n_layers,
            positions=positions,
            prompts=tuple(Prompt(one.id, chat_tokens(lm, one.text)) for one in prompts),
            conditions=conditions(chosen, plan.doses),
            new_tokens=plan.new_tokens,
            stop_ids=tuple(sorted(lm.stop_ids)),
            pad_id=lm.pad_id,
            threads=plan.threads,
        ).write(folder / f"{positions}.json")


def counted(model: Any) -> Parameters:
    """Count a causal language model of transformers; shared parameters count once."""
    total = sum(one.numel() for one in model.parameters())
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    looked_up = 0 if embedding is head else embedding.numel()
    return Parameters(total, total - head.numel() - looked_up, head.numel())


def layers(n_layers: int, n_chosen: int) -> tuple[int, ...]:
    """Evenly spread over the middle of the model, from a fifth to seven tenths of its depth."""
    if n_chosen == 1:
        return (n_layers // 2,)
    return tuple(round(n_layers * (0.2 + 0.5 * index / (n_chosen - 1))) for index in range(n_chosen))


def conditions(chosen: Sequence[int], doses: Sequence[float]) -> tuple[Condition, ...]:
    """The baseline, then every layer at every dose."""
    steered = [Condition(f"layer {layer}, {dose:+g}", layer, dose) for layer in chosen for dose in doses]
    return (Condition("baseline", None, 0.0), *steered)


def vectors(lm: LanguageModel, chosen: Sequence[int]) -> dict[int, Tensor]:
    """The difference in means at the last prompt token of each layer; its length is the unit of the dose."""
    packaged = load_prompts()
    harmful, harmless = (
        record_prompts(
            lm,
            [one.text for one in select(packaged, label=label, split="extract", limit=N_EXTRACTED)],
            layers=chosen,
        )
        for label in ("harmful", "harmless")
    )
    return {
        layer: difference_in_means(harmful.at(layer, -1), harmless.at(layer, -1)).float().contiguous()
        for layer in chosen
    }


def link_model(source: Path, folder: Path) -> None:
    """The same files under another folder, with the rotary base also under the name that transformers 4 reads.

    transformers 4 would otherwise take its default base without a word and give other tokens.
    """
    folder.mkdir()
    for file in source.iterdir():
        if file.name == "config.json":
            config = json.loads(file.read_text("utf-8"))
            if base := config.get("rope_parameters", {}).get("rope_theta"):
                config["rope_theta"] = base
            (folder / file.name).write_text(json.dumps(config), "utf-8")
        else:
            (folder / file.name).symlink_to(file.resolve())


if __name__ == "__main__":
    main()
