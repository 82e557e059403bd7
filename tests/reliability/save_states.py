"""A process that saves one state after the other, to be killed by whoever started it."""

import sys
from pathlib import Path

import torch

from dreambooth.records.workspace import RunFolder
from dreambooth.training.checkpoint import Learner, write_checkpoint
from dreambooth.training.run_identity import RunIdentity


def learner(step: int) -> Learner:
    """Return a small learner whose weights all are the step's number."""
    model = torch.nn.Linear(64, 64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(step))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    return Learner({"unet": dict(model.named_parameters())}, optimizer, torch.amp.GradScaler("cpu", enabled=False))


IDENTITY = RunIdentity({"seed": 7}, "photos", {"device": "cpu"})

if __name__ == "__main__":
    run = RunFolder(Path(sys.argv[1]))
    first, last = int(sys.argv[2]), int(sys.argv[3])
    print("saving", flush=True)
    for number in range(first, last + 1):
        write_checkpoint(run, number, learner(number), IDENTITY, 1)
