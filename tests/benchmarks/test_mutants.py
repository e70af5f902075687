"""The tests notice whatever is done wrong to the mathematics: each known-wrong variant of the package is rejected."""

import ast
from dataclasses import replace
from functools import cache

import pytest

from benchmarks.mutants import table
from benchmarks.mutation.every import EVERY
from benchmarks.mutation.mutant import Mutant
from benchmarks.mutation.run import (
    PACKAGE,
    ROOT,
    NoVerdictError,
    Outcome,
    check_the_unchanged,
    copy_of_the_repository,
    failing_test,
    meet,
)

BY_NAME = {mutant.name: mutant for mutant in EVERY}
POOLS = BY_NAME["core/activations.py: max and min exchanged"]
FEW = (
    POOLS,
    BY_NAME["core/norms.py: eps forgotten"],
    BY_NAME["core/layers/border.py: the last tap forgotten"],
)


@cache
def text_of(file: str) -> tuple[str, str]:
    text = (ROOT / PACKAGE / file).read_text()
    return text, ast.dump(ast.parse(text))


def test_the_list_is_long_and_every_mutant_is_another_one() -> None:
    assert len(EVERY) > 200
    assert len(BY_NAME) == len({(mutant.file, mutant.right, mutant.wrong) for mutant in EVERY}) == len(EVERY)


@pytest.mark.parametrize("mutant", EVERY, ids=lambda mutant: mutant.name)
def test_what_a_mutant_replaces_is_there_once_and_what_it_writes_is_python(mutant: Mutant) -> None:
    right, parsed = text_of(mutant.file)
    assert ast.dump(ast.parse(mutant.applied(right))) != parsed
    assert all((ROOT / "tests" / name).is_file() for name in mutant.tests)


@pytest.mark.parametrize("wrong", [replace(POOLS, right="not there"), replace(POOLS, right="affine")])
def test_a_mutant_that_is_out_of_date_says_so(wrong: Mutant) -> None:
    with pytest.raises(ValueError, match="bring the list of mutants up to date"):
        meet(wrong)


@pytest.mark.parametrize("mutant", FEW, ids=lambda mutant: mutant.name)
def test_some_mutants_are_killed(mutant: Mutant) -> None:
    assert meet(mutant).killed_by.startswith("core/")


def test_nothing_is_killed_where_nothing_is_wrong() -> None:
    maps = replace(BY_NAME["core/affine.py: the inner shift not scaled"], tests=("core/test_affine.py",))
    check_the_unchanged([maps])
    assert meet(maps).killed_by
    harmless = "(self.scale * before.shift + self.shift))"
    assert not meet(replace(maps, wrong=harmless)).killed_by


def test_tests_of_another_copy_are_no_verdict() -> None:
    with copy_of_the_repository() as folder, pytest.raises(NoVerdictError, match="the tests did not import"):
        failing_test(folder, "core/nowhere.py", ("core/test_affine.py",), timeout=300)


def test_tests_that_do_not_end_are_no_verdict() -> None:
    with copy_of_the_repository() as folder, pytest.raises(NoVerdictError, match="did not end"):
        failing_test(folder, POOLS.file, POOLS.tests, timeout=0.01)


def test_the_table_names_what_survived() -> None:
    outcomes = [Outcome(POOLS, "core/test_activations_pools.py::test_it[a|b]", 1.0), Outcome(FEW[1], "", 1.0)]
    assert table(outcomes).splitlines()[-1] == "1 of 2 mutants killed."
    assert "SURVIVED" in table(outcomes).splitlines()[2]
    assert table(outcomes, markdown=True).splitlines()[2].endswith(r"test_it[a\|b] |")


@pytest.mark.slow
def test_nothing_is_killed_without_a_mutant() -> None:
    check_the_unchanged(EVERY)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", EVERY, ids=lambda mutant: mutant.name)
def test_every_mutant_is_killed(mutant: Mutant) -> None:
    assert meet(mutant).killed_by
