"""One thread per test process: two are slower on the small problems here."""

import torch

torch.set_num_threads(1)
