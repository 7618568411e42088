"""Searches on a fake accountant whose curve is known, and once on the real ones."""

import math

import pytest

from deel.lipdp.accounting import (
    GaussianStep,
    LaplaceStep,
    PoissonSampling,
    ShuffledSampling,
    UndeclaredSampling,
    calibrate_noise,
    compute_epsilon,
    max_steps,
)

STEP = GaussianStep(PoissonSampling(0.1), 2.0)
OTHER = GaussianStep(UndeclaredSampling(), 1.0)


class KnownCurve:
    """Every step costs `scale / multiplier`; remembers what it was asked."""

    def __init__(self, scale=1.0):
        self.scale, self.calls = scale, []

    def epsilon(self, entries, delta):
        entries = list(entries)
        cost = sum(self.scale * steps / event.noise_multiplier for event, steps in entries)
        self.calls.append((entries, delta, cost))
        return cost


class TestMaxSteps:
    @pytest.mark.parametrize("answer", [0, 1, 2, 3, 7, 8, 9, 1000, 123_456])
    def test_exact_on_a_known_curve(self, answer):
        # Halves are exact in binary, so that the budget may be hit exactly.
        assert max_steps(STEP, 0.5 * answer, 1e-5, accountant=KnownCurve()) == answer
        assert max_steps(STEP, 0.5 * answer + 0.49, 1e-5, accountant=KnownCurve()) == answer

    def test_spent_is_subtracted_and_may_be_an_iterator(self):
        fake = KnownCurve()
        assert max_steps(STEP, 10.0, 1e-5, spent=iter([(OTHER, 4), (STEP, 2)]), accountant=fake) == 10
        assert all(entries[:2] == [(OTHER, 4), (STEP, 2)] and delta == 1e-5 for entries, delta, _ in fake.calls)

    @pytest.mark.parametrize("budget", [0.0, 0.5, 3.0, 3.5, 17.0, 100.0])
    def test_releases_grow_with_the_steps(self, budget):
        # A step costs 1/2, and one release of cost 1 is made by every third step, the first one included.
        def releases(steps):
            return iter([(OTHER, math.ceil(steps / 3))])

        truth = max(n for n in range(1000) if n / 2 + math.ceil(n / 3) <= budget)
        assert max_steps(STEP, budget, 1e-5, accountant=KnownCurve(), releases=releases) == truth
        assert max_steps(STEP, budget, 1e-5, accountant=KnownCurve()) == 2 * budget

    def test_releases_that_come_late_change_no_price_before(self):
        # Undeclared releases turn the relation of the whole ledger into zero_out: no budget may appear or vanish there.
        step, release = GaussianStep(PoissonSampling(0.02), 2.0), LaplaceStep(UndeclaredSampling(), 50.0)

        def releases(steps):
            return [(release, steps // 100)]

        found = max_steps(step, 1.1, 1e-5, accountant="rdp", releases=releases)
        costs = [compute_epsilon([(step, n), *releases(n)], 1e-5) for n in (99, 100, found, found + 1)]
        assert costs == sorted(costs) and costs[2] <= 1.1 < costs[3] and found > 100

    def test_relation_reaches_the_accountant(self):
        shuffled = GaussianStep(ShuffledSampling(), 4.0)
        halved = GaussianStep(ShuffledSampling(), 2.0)
        replaced = max_steps(shuffled, 5.0, 1e-5, relation="replace_one")
        assert replaced == max_steps(halved, 5.0, 1e-5) < max_steps(shuffled, 5.0, 1e-5)
        with pytest.raises(ValueError, match="shifts every later one"):
            max_steps(shuffled, 5.0, 1e-5, relation="add_or_remove_one")

    def test_nothing_left(self):
        assert max_steps(STEP, 10.0, 1e-5, spent=[(OTHER, 11)], accountant=KnownCurve()) == 0
        assert max_steps(STEP, 0.0, 1e-5, accountant=KnownCurve()) == 0
        assert max_steps(GaussianStep(PoissonSampling(0.1), 0.0), 5.0, 1e-5) == 0

    @pytest.mark.parametrize("limit", [1, 2, 37, 1024])
    def test_limit(self, limit):
        fake = KnownCurve()
        assert max_steps(STEP, math.inf, 1e-5, accountant=fake, limit=limit) == limit
        assert max(entries[-1][1] for entries, _, _ in fake.calls) == limit
        assert max_steps(STEP, 0.5 * 30, 1e-5, accountant=KnownCurve(), limit=limit) == min(limit, 30)

    @pytest.mark.parametrize("accountant", ["rdp", "pld"])
    def test_largest_on_the_real_accountants(self, accountant):
        step = GaussianStep(PoissonSampling(0.02), 2.0)
        spent = [(OTHER, 0), (step, 10)]
        steps = max_steps(step, 1.1, 1e-5, spent=spent, accountant=accountant)
        assert steps > 0
        assert compute_epsilon([*spent, (step, steps)], 1e-5, accountant) <= 1.1
        assert compute_epsilon([*spent, (step, steps + 1)], 1e-5, accountant) > 1.1

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            (dict(epsilon=-1.0), ValueError, "max_steps.*epsilon"),
            (dict(epsilon=math.nan), ValueError, "epsilon"),
            (dict(epsilon="1"), TypeError, "epsilon"),
            (dict(delta=0.0), ValueError, "delta"),
            (dict(limit=0), ValueError, "limit"),
            (dict(releases=[(OTHER, 1)]), TypeError, "releases.*lambda"),
            (dict(relation="swap"), ValueError, "'replace_one'.*swap"),
            (dict(event="step"), TypeError, "str"),
            (dict(accountant="moments"), ValueError, "moments"),
        ],
    )
    def test_bad_arguments(self, arguments, error, match):
        with pytest.raises(error, match=match):
            max_steps(**{"event": STEP, "epsilon": 1.0, "delta": 1e-5, "accountant": "rdp", **arguments})


class TestCalibrateNoise:
    @pytest.mark.parametrize("truth", [0.01, 0.3, 1.0, 1.7, 55.0, 1e6])
    @pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-9])
    def test_safe_side_of_a_known_curve(self, truth, tolerance):
        fake = KnownCurve(scale=truth)  # 30 steps of it cost 30 at the true multiplier
        found = calibrate_noise(30.0, 1e-5, 10, 95, 3, accountant=fake, relative_tolerance=tolerance)
        assert truth <= found <= truth * (1 + tolerance) * (1 + 1e-12)
        priced = {entries[0][0].noise_multiplier: cost for entries, _, cost in fake.calls}
        assert priced[found] <= 30.0

    def test_event_is_what_was_declared(self):
        fake = KnownCurve()
        calibrate_noise(1.0, 1e-6, 10, 95, 3, accountant=fake)
        calibrate_noise(1.0, 1e-6, 10, 95, steps=7, sampling="undeclared", accountant=fake)
        calibrate_noise(1.0, 1e-6, 10, 95, 3, steps=7, sampling=None, accountant=fake)
        seen = {(entries[0][0].sampling, entries[0][1], delta) for entries, delta, _ in fake.calls}
        assert seen == {(PoissonSampling(10 / 95), 30, 1e-6), (UndeclaredSampling(), 7, 1e-6)}

    @pytest.mark.parametrize(
        ("plan", "passes"),
        [(dict(epochs=3), 3), (dict(steps=21), 3), (dict(epochs=4, steps=21), 4), (dict(epochs=2, steps=21), 3)],
    )
    def test_shuffled_counts_passes_started(self, plan, passes):
        fake = KnownCurve()
        calibrate_noise(1.0, 1e-6, 10, 95, sampling="shuffled", accountant=fake, **plan)
        assert {(entries[0][0].sampling, entries[0][1]) for entries, _, _ in fake.calls} == {
            (ShuffledSampling(), passes)
        }

    def test_releases_are_paid_first(self):
        fake = KnownCurve()
        found = calibrate_noise(40.0, 1e-5, 10, 95, 3, accountant=fake, releases=iter([(OTHER, 10)]))
        assert 1.0 <= found <= 1.001 * (1 + 1e-12)  # 30 steps for the 30 that are left
        assert all((OTHER, 10) in entries for entries, _, _ in fake.calls)
        with pytest.raises(ValueError, match="release less"):
            calibrate_noise(9.0, 1e-5, 10, 95, 3, accountant=fake, releases=[(OTHER, 10)])

    def test_relation_doubles_the_noise_of_shuffled_batches(self):
        plan = (3.0, 1e-5, 256, 60000, 10)
        once = calibrate_noise(*plan, sampling="shuffled", relative_tolerance=1e-6)
        twice = calibrate_noise(*plan, sampling="shuffled", relation="replace_one", relative_tolerance=1e-6)
        assert twice == pytest.approx(2 * once, rel=1e-5)

    def test_an_impossible_tolerance_ends(self):
        assert calibrate_noise(30.0, 1e-5, 10, 95, 3, accountant=KnownCurve(1.7), relative_tolerance=1e-300) >= 1.7

    def test_out_of_reach(self):
        with pytest.raises(ValueError, match="calibrate_noise.*Raise target_epsilon"):
            calibrate_noise(1.0, 1e-5, 10, 100, 1, accountant=KnownCurve(math.inf))
        assert 0.0 < calibrate_noise(1.0, 1e-5, 10, 100, 1, accountant=KnownCurve(0.0)) < 1e-2

    @pytest.mark.parametrize("accountant", ["rdp", "pld"])
    @pytest.mark.parametrize("sampling", ["poisson", "shuffled", "undeclared"])
    def test_real_accountants(self, accountant, sampling):
        keywords = dict(sampling=sampling, accountant=accountant, relative_tolerance=5e-2)
        found = calibrate_noise(1.0, 1e-5, 64, 1500, 5, **keywords)
        event, count = {
            "poisson": (PoissonSampling(64 / 1500), 5 * 24),
            "shuffled": (ShuffledSampling(), 5),
            "undeclared": (UndeclaredSampling(), 5 * 24),
        }[sampling]

        def cost(multiplier):
            return compute_epsilon([(GaussianStep(event, multiplier), count)], 1e-5, accountant)

        assert cost(found) <= 1.0 < cost(found / 1.06)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            (dict(target_epsilon=0.0), ValueError, "target_epsilon"),
            (dict(target_epsilon=math.inf), ValueError, "target_epsilon"),
            (dict(delta=1.0), ValueError, "delta"),
            (dict(batch_size=0), ValueError, "batch_size"),
            (dict(batch_size=101), ValueError, "batch_size.*training set"),
            (dict(batch_size=2.5), TypeError, "batch_size"),
            (dict(num_examples=0), ValueError, "num_examples"),
            (dict(epochs=0), ValueError, "epochs"),
            (dict(epochs=None), TypeError, "epochs or steps"),
            (dict(steps=0), ValueError, "steps"),
            (dict(sampling="sorted"), ValueError, "'poisson', 'shuffled', 'undeclared'"),
            (dict(relation="swap"), ValueError, "'replace_one'.*swap"),
            (dict(accountant="moments"), ValueError, "moments"),
            (dict(relative_tolerance=0.0), ValueError, "relative_tolerance"),
        ],
    )
    def test_bad_arguments(self, arguments, error, match):
        good = dict(target_epsilon=1.0, delta=1e-5, batch_size=10, num_examples=100, epochs=2, accountant="rdp")
        with pytest.raises(error, match=match):
            calibrate_noise(**{**good, **arguments})
