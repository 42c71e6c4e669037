"""The forks that end-to-end tests are served by."""

import os
import threading

import pytest
import torch

from tests.end_to_end.forked import forking

FORKS = 5  # without `renew_threads`, 19 of 20 fail


@pytest.mark.chance
def test_threads_of_a_fork_compute_at_once() -> None:
    process = forking().Process(target=_fork_and_compute)
    process.start()
    process.join()
    assert process.exitcode == 0


def _fork_and_compute() -> None:
    torch.set_num_threads(2)  # makes the pool that forks are to leave behind
    for _ in range(FORKS):
        child = os.fork()
        if not child:
            os._exit(_failures_of_four_threads())
        assert os.waitpid(child, 0)[1] == 0


def _failures_of_four_threads() -> int:
    numbers, together, failed = torch.ones(1_000_000), threading.Barrier(4), []

    def compute() -> None:
        together.wait()
        try:
            numbers.sum()
        except RuntimeError as error:
            failed.append(error)

    threads = [threading.Thread(target=compute) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return len(failed)
