"""One of the processes of test_finite_zero2: trains a little model under what was launched.

Process 1 has a loss, then process 0 a gradient that is not finite; then nothing is finite any more.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.broken_steps import GRADIENT, LOSS, batches, little_loop, little_plan
from signfuse_dist.engine import processes
from signfuse_dist.engine.guards import MAX_IN_A_ROW
from signfuse_dist.errors import UserError

STEPS = {
    0: ["x", "x", "x", GRADIENT, "x", *["x"] * MAX_IN_A_ROW, "x"],
    1: ["x", LOSS, "x", "x", "x", *[LOSS] * MAX_IN_A_ROW, "x"],
}


def main(folder: Path) -> None:
    """Train until the last step in a row that is not finite, and say why it ended."""
    plan, train = little_plan(len(STEPS[0]), 2, non_finite="skip")
    accelerator, resolved = processes.start(plan, train)
    assert resolved is not None
    assert resolved["zero_optimization"]["stage"] == 2
    loop, model = little_loop(accelerator, folder, plan, train)
    try:
        loop.run(batches(STEPS[accelerator.process_index]), 0, model.train)
    except UserError as e:
        print(f"process {accelerator.process_index} ends: {e}", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
