import random

import numpy as np
import pytest
import torch
from hypothesis import settings

# Two workers share two cores, and one thread adds up floats in one order.
torch.set_num_threads(1)

settings.register_profile("fastrec", deadline=None, derandomize=True)
settings.load_profile("fastrec")


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
