"""``python -m training.basket runs/SWEEP/RUN [NAME ...]``: the command of :mod:`training.gradients.basket`."""

from training.errors import explained
from training.gradients.basket import main

if __name__ == "__main__":
    explained(main)
