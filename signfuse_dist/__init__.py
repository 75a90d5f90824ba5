"""signfuse_dist: gloss-free sign language translation with SignFuse, trained at scale.

``from signfuse_dist import SignFuse, SignFuseConfig`` gives the model; torch is imported then, not
before. Data flows from left to right, imports go from right to left::

    annotation --corpora--> rows --data--> shards --data--> SignBatch --model--> losses
    losses --engine--> RUN/model --evaluation--> translations, scores --report--> report.html

Everybody uses ``errors`` and ``answer`` (which error and status a fault becomes),
``system_errors`` (the machine's fault or a file's), ``files`` and
``tensor_files``, ``writer`` (which process writes) and ``locks`` (that one does), ``records``
(typed YAML and JSON), ``config`` (what a run is), ``sections`` (its sections by their names),
``experiment`` (reading one), ``contradictions`` (values that exclude each other), ``recipe`` (what
of it is not as printed), ``run_folder`` (what RUN holds), ``progress`` (the only bars), ``device``
and ``nvidia`` (where it computes), ``garbage`` (when it is not collected),
``languages`` (their names, for prompts), ``vector_source`` (what a feature set is).
Data and model do not know each other: they meet in ``batch`` and ``skeleton``, with ``plan`` (which
clips and frames at which step), ``arrangement`` (which lie together), ``blend`` (of which corpus)
and ``draws`` (numbers by the clip) on
one side and ``stages``,
``objective`` (section 3.7: what trains, which losses) on the other.

============== ===================================================================================
cli/           ``signfuse``: options in, errors and exit statuses out
corpora/       who is in a corpus, clip by clip; opens no video
data/          videos become shards, shards become batches
model/         SignFuse, equation by equation; its LLM; models on disk
engine/        the training loop, from an objective: steps, processes, checkpoints, metrics
evaluation/    a trained stage translates a split or new clips, and is scored
report/        the report, the model card, published results beside ours
preflight/     ``signfuse check``: what would end a job an hour in, without torch
ablation/      section 5.4: rows and seeds become runs, runs become tables
jobs/          starting stages here and on Slurm, and starting them again
serve/         the web page, and what may reach it
synthetic/     the demo's invented world, with a small LLM
============== ===================================================================================

A run starts in ``train``, once a process: the only place that knows data, model and engine, with
``weights``, ``start`` (what ``train.start`` names) with ``origin`` (what went into a model),
``texts`` (that the LLM takes them), ``cached_features``, ``development`` (the score a model is
selected by) and ``metering`` (what the log divides) as its parts. ``docs/architecture.md`` says
where to read first.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "SignFuse": "signfuse_dist.model.signfuse",
    "SignFuseConfig": "signfuse_dist.model.saved",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
