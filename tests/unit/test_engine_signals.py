"""A signal becomes a flag; a second one, later, ends at once."""

import os
import signal

import pytest

from trainer.engine import signals
from trainer.engine.signals import SAME_REQUEST_S, STOP_SIGNALS, StopRequest, stop_on_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_sets_the_flag_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert stop.signum == 0
        os.kill(os.getpid(), number)
        assert stop.signum == number
    assert signal.getsignal(number) == before


def test_second_signal_ends_at_once_but_an_echo_of_the_first_does_not(monkeypatch):
    now, ended = [100.0], []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    stop = StopRequest()
    stop.handle(signal.SIGTERM, None)
    now[0] += SAME_REQUEST_S / 2
    stop.handle(signal.SIGINT, None)
    assert (stop.signum, ended) == (signal.SIGTERM, [])
    now[0] += SAME_REQUEST_S
    stop.handle(signal.SIGUSR1, None)
    assert ended == [128 + signal.SIGUSR1]
