"""Time is the device's: where it lags behind the host, the host waits at the ends of what is timed."""

import torch

from training.pack.stopwatch import Stopwatch


class Lagging:
    """A device that takes a second for each piece of work; the host gives it work in no time and waits if asked."""

    def __init__(self):
        self.now = 0.0
        self.busy_until = 0.0

    def work(self, seconds):
        self.busy_until = max(self.busy_until, self.now) + seconds

    def wait(self):
        self.now = max(self.now, self.busy_until)

    def clock(self):
        return self.now


def test_time_belongs_to_what_the_device_did_it_for():
    device = Lagging()
    watch = Stopwatch(torch.device("cpu"), device.wait, device.clock)
    device.work(3)  # training, of which the host knows nothing yet
    with watch.doing("watching"):
        assert watch.seconds("training") == 3
        with watch.doing("evaluation"):
            device.work(5)
        device.now += 7  # the host's own: writing a file
    device.work(2)
    assert (watch.seconds("training"), watch.seconds("evaluation"), watch.seconds("watching")) == (3, 5, 7)
    with watch.doing("evaluation"):
        device.work(1)
    assert (watch.seconds("training"), watch.seconds("evaluation")) == (5, 6)


def test_time_ends_where_an_error_leaves_a_block():
    device = Lagging()
    watch = Stopwatch(torch.device("cpu"), device.wait, device.clock)
    try:
        with watch.doing("evaluation"):
            device.work(4)
            raise KeyError
    except KeyError:
        device.work(1)
    with watch.doing("evaluation"):
        pass
    assert (watch.seconds("training"), watch.seconds("evaluation")) == (1, 4)
