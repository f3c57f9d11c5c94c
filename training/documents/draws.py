"""``python -m training.documents.draws FILE.json``: Gumbel noise as data, for pages and figures that run without torch.

The file holds ``seed`` and ``noise``: ``DRAWS`` rows of ``CATEGORIES`` standard Gumbel variables to four decimals, from
:func:`estimators.noise.gumbel`, that is from where every estimator takes its noise.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from estimators import noise

SEED, DRAWS, CATEGORIES = 0, 1000, 10


def draws() -> dict[str, Any]:
    """The content of the file: the same for every call, on every machine. Torch's global generator is left alone."""
    generator = torch.Generator().manual_seed(SEED)
    # In double precision, so that no machine's last bit changes the fourth decimal.
    with noise.noise_source(lambda shape, dtype, device, _: noise.open_uniform(shape, dtype, device, (generator,))):
        rows = noise.gumbel((DRAWS, CATEGORIES), dtype=torch.float64, device=torch.device("cpu")).tolist()
    return {"seed": SEED, "noise": [[round(value, 4) for value in row] for row in rows]}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m training.documents.draws FILE.json")
    Path(sys.argv[1]).write_text(json.dumps(draws(), separators=(",", ":")) + "\n")
