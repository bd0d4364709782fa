"""Running lm-evaluation-harness on weights in memory: a transformers model without a round trip over the disk."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec.errors import UserError, describe
from taskvec.protocols.harness.consent import guarded
from taskvec.protocols.harness.files import INSTALL

if TYPE_CHECKING:
    from torch import Tensor, nn

    from taskvec.models.language.language import LanguageModel


class Job(NamedTuple):
    """One task of the harness and how it is run; ``folders`` hold its files."""

    task: str
    folders: tuple[str, ...]
    limit: int | None
    batch_size: int
    num_fewshot: int | None
    allow_code: bool


def evaluate(
    job: Job, backbone: LanguageModel, weights: Mapping[str, Tensor], *, bf16: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a task's metrics (``main`` names the first) under canonical weights, and each example's values [N].

    Raises:
        UserError: if the harness or what the task needs is missing.
        SecurityError: never; the guard tells it as a user error.
    """
    try:
        import lm_eval
        from jinja2.exceptions import SecurityError
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"{INSTALL} ({error})") from error
    name = job.task
    with quiet(), guarded(allow_code=job.allow_code):
        manager = TaskManager(include_path=list(job.folders), include_defaults=False)
        try:
            loaded = manager.load([name])
        except (UserError, SecurityError):
            raise
        except Exception as error:
            raise UserError(
                f"protocol.tasks: lm-eval cannot load {name}: {describe(error)}"
            ) from error
        narrow = "bfloat16" if bf16 else None
        model = HFLM(
            pretrained=to_network(backbone, weights),
            backend="causal",
            batch_size=job.batch_size,
            mixed_precision_dtype=narrow,
            **tokenizer(backbone),
        )
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[loaded["groups"].get(name) or loaded["tasks"][name]],
            task_manager=manager,
            num_fewshot=job.num_fewshot,
            limit=job.limit,
            bootstrap_iters=0,
            confirm_run_unsafe_code=job.allow_code,
        )
    return summary(name, found), per_example(found["samples"])


def to_network(backbone: LanguageModel, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Return transformers' model with these canonical weights, which it shares where the format allows.

    Raises:
        UserError: if a weight is missing or unknown.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    from taskvec.models.sources import CONFIG

    first = next(iter(parameters.values()))
    with backbone.source.opened((CONFIG,)) as place:
        config = AutoConfig.from_pretrained(**place)
    with no_init_weights():
        network = AutoModelForCausalLM.from_config(config, dtype=first.dtype)
    keys = network.load_state_dict(backbone.to_transformers(parameters), strict=False, assign=True)
    network.tie_weights()
    tied = set(network.all_tied_weights_keys) if config.tie_word_embeddings else set()
    wrong = sorted({*keys.unexpected_keys, *(set(keys.missing_keys) - tied)})
    if wrong:
        raise UserError(
            f"backbone.model: {backbone.model}: {wrong[0]} does not fit transformers' model"
        )
    return network.requires_grad_(False).to(first.device).eval()


def tokenizer(backbone: LanguageModel) -> dict[str, Any]:
    """Return the harness's arguments about the tokenizer: a copy, which puts the start token before every text."""
    from tokenizers.processors import TemplateProcessing

    from taskvec.models.language.tokens import special_id

    own, start = copy.deepcopy(backbone.text_tokenizer), backbone.start_token
    if not start:
        return {"tokenizer": own}
    number = special_id(own, start)
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single=[start, "$A"], special_tokens=[(start, number)]
    )
    return {"tokenizer": own, "add_bos_token": True, "prefix_token_id": number}


def summary(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's or group's metrics as numbers, ``METRIC,FILTER`` -> value, and the name of the first.

    Raises:
        UserError: if there is no number.
    """
    tasks = {leaf: _numbers(result) for leaf, result in found["results"].items()}
    metrics = tasks.pop(name, {})
    if not metrics:  # a group that declares no aggregate
        metrics = _means(list(tasks.values()))
    if not metrics:
        raise UserError(f"protocol.tasks: {name} gives no number")
    examples = {leaf: sizes["effective"] for leaf, sizes in found["n-samples"].items()}
    said = {"metrics": metrics, "main": next(iter(metrics)), "examples": examples}
    said["higher_is_better"] = directions(found.get("higher_is_better", {}))
    return said | ({"tasks": tasks} if tasks else {})


def _means(parts: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each number that all parts have."""
    if not parts:
        return {}
    shared = set(parts[0]).intersection(*parts[1:])
    means = {}
    for key in parts[0]:
        if key in shared:
            means[key] = sum(part[key] for part in parts) / len(parts)
    return means


def directions(declared: Mapping[str, Mapping[str, bool | None]]) -> dict[str, bool | None]:
    """Return whether more is better by metric, None where tasks disagree or do not say."""
    found: dict[str, bool | None] = {}
    for metrics in declared.values():
        for name, higher in metrics.items():
            known = found.setdefault(name, higher)
            if known != higher:
                found[name] = None
    return found


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics among the entries of a result, which also holds its alias and standard errors."""
    return {
        key: float(value)
        for key, value in result.items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }


def per_example(samples: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return each metric's value per example, ``example/TASK/METRIC,FILTER`` [N] float64, where it is a number."""
    import torch

    values: dict[str, list[float]] = {}
    for task, rows in samples.items():
        for row in rows:
            for metric in row["metrics"]:
                if isinstance(row[metric], int | float):
                    values.setdefault(f"example/{task}/{metric},{row['filter']}", []).append(
                        float(row[metric])
                    )
    return {key: torch.tensor(column, dtype=torch.float64) for key, column in values.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the logs of lm-eval and the progress bars of data sets off the terminal."""
    import datasets

    logger, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
