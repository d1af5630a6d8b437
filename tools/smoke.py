"""Records something with fastrec as it is installed, to see that nothing was left out of the distribution.

python -I smoke.py        # in an environment that has fastrec and nothing else, outside of the checkout
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F

import fastrec
from fastrec._cli import main
from fastrec._optional import DISTRIBUTION
from fastrec.graph import log_forward_pass
from fastrec.predicates import every, op


class Policy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(4, 8)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return F.softsign(self.head(torch.tanh(self.hidden(obs))))  # a composite, of which a table in a file is asked


def smoke(folder: Path) -> None:
    assert version(DISTRIBUTION) == fastrec.__version__
    assert Path(fastrec.__file__).with_name("py.typed").exists()
    policy, path = Policy(), folder / "run.h5"
    with fastrec.Recorder(policy, keep_op=op("tanh", "abs") & every(2), keep_module="head", sink=path) as rec:
        for _ in range(10):
            policy(torch.randn(3, 4))
            rec.step(reward=torch.ones(3))
    recording = fastrec.load(path)
    assert recording.stack("/tanh").shape == (5, 3, 8)
    assert recording.stack("head").shape == (10, 3, 2)
    assert len(recording["/softsign/abs"]) == 5
    assert len(log_forward_pass(policy, torch.randn(3, 4)).operations) > 5
    assert main(["info", str(path)]) == 0
    try:
        recording.to_pandas()
    except fastrec.FastrecError as error:
        assert f"pip install '{DISTRIBUTION}[pandas]'" in str(error), error
    else:
        raise AssertionError("this environment has pandas, so it doesn't show that fastrec can do without")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        smoke(Path(name))
    print(f"fastrec {fastrec.__version__} records, with torch {torch.__version__} on Python {sys.version.split()[0]}")
