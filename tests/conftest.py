"""What holds for all tests: one thread, one seed, and how many cases of the fault matrix were run."""

from typing import Any

import pytest
import torch

# Small operations: threads that wait for each other cost more than they bring, and two test processes share the cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many cases of the fault matrix were run; see tests/promises/test_faults.py."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    properties = [pair for report in reports for pair in getattr(report, "user_properties", ())]
    cases = sum(value for name, value in properties if name == "cases")
    if cases:
        terminalreporter.write_line(f"fault matrix: {cases:,} cases")
