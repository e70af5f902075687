"""Random networks of every kind: the function, the canonical form, the plan, restoration, and LRP-0.

A failing example is printed as source: paste it as ``network`` and call ``check(network, ...)``.
"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, assume, event, given, settings
from hypothesis import strategies as st

from canon_bridge import plan
from tests.support.random.checks import check
from tests.support.random.faults import FAULTS
from tests.support.random.ingredients import EVERY_INGREDIENT, ingredients
from tests.support.random.networks import networks
from tests.support.random.oracle import by_captum, by_zennit, check_relevance, reference

COMMON = settings(
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    print_blob=False,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
ORDERS = pytest.mark.parametrize("prefer", ["left", "right", "untangled"])
KEYWORDS = st.fixed_dictionaries(
    {
        "leftover": st.sampled_from(("linear", "linear", "keep")),
        "clipped": st.sampled_from(("absorb", "pass")),
        "example": st.booleans(),
    }
)

pytestmark = [
    pytest.mark.whole,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
    # Where all outputs are zero by chance any rounding is a large relative error; it is measured here, too.
    pytest.mark.filterwarnings("ignore:canonization changed the output:UserWarning"),
]


@ORDERS
@given(network=networks(), keywords=KEYWORDS)
@settings(COMMON, max_examples=80)
def test_function_form_plan_and_restoration(prefer, network, keywords):
    _check(network, prefer=prefer, **keywords)


def _check(network, **keywords):
    try:
        return check(network, **keywords).entries
    except ValueError as error:
        if "are merged for input of shape" not in str(error):
            raise
        return ()  # refused aloud: a merge holds for another number of dimensions


def _check_oracle(network, prefer, *frameworks):
    found = reference(network)
    assume(found is not None)
    model, x, expected = found
    assume(not plan(model, prefer=prefer).uncovered)  # what is no module has no rule
    for relevance_by in frameworks:
        check_relevance(relevance_by(model, x, prefer), expected)


@ORDERS
@given(network=networks(plain=True))
@settings(COMMON, max_examples=40)
def test_oracle_in_captum(prefer, network):
    _check_oracle(network, prefer, by_captum)


@pytest.mark.zennit
@ORDERS
@given(network=networks(plain=True))
@settings(COMMON, max_examples=20)
def test_oracle_in_zennit(prefer, network):
    _check_oracle(network, prefer, by_zennit)


@pytest.mark.slow
def test_thousands_of_networks_with_every_ingredient():
    seen: Counter[str] = Counter()
    fates: Counter[str] = Counter()
    cases: list[bool] = []

    @given(network=networks(size=10), keywords=KEYWORDS, prefer=st.sampled_from(("left", "right", "untangled")))
    @settings(COMMON, max_examples=3000)
    def run(network, keywords, prefer):
        entries = _check(network, prefer=prefer, **keywords)
        cases.append(bool(entries))
        seen.update(ingredients(network))
        for entry in entries:
            through = entry.chain.through if hasattr(entry, "chain") else ()
            fates[entry.chain.kind if hasattr(entry, "chain") else type(entry).__name__.lower()] += 1
            fates.update({f"through {name.split()[0]}" for name in through})

    run()
    print(f"\n{len(cases)} networks, {cases.count(False)} refused; BatchNorms: {dict(fates.most_common())}")  # noqa: T201
    print(dict(sorted(seen.items())))  # noqa: T201
    assert EVERY_INGREDIENT - set(seen) == set()
    assert {"left", "right", "activation", "mixed", "leftover", "untangled"} <= set(fates)
    assert {f"through {name}" for name in ("cat", "chunk", "ReLU", "MaxPool2d", "flatten")} <= set(fates)
    assert cases.count(False) < 0.05 * len(cases)


@pytest.mark.slow
@ORDERS
@given(network=networks(plain=True, size=10))
@settings(COMMON, max_examples=800)
def test_hundreds_of_oracles_in_both_frameworks(prefer, network):
    event("shares layers" if network.shares_layers() else "shares none")
    _check_oracle(network, prefer, by_captum, by_zennit)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checks_reject(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        _search(_check)


def test_the_oracle_rejects_relevance_that_passes_clipped_units(monkeypatch):
    monkeypatch.setattr("canon_bridge.core.activations.stop_at_clipped", lambda compares, module, args: None)
    with pytest.raises(AssertionError, match="not gradient times input"):
        _search(lambda network, prefer: _check_oracle(network, prefer, by_captum), plain=True)


def _search(check_it, plain=False):
    @given(network=networks(plain=plain))
    @settings(COMMON, max_examples=400, phases=(Phase.generate,))
    def run(network):
        check_it(network, prefer="right")

    run()
