"""A budget: training ends before the step that exceeds it, and no release that exceeds it is made."""

import collections
import math

import keras
import numpy as np
import pytest
from doubles import SHAPE, UPPER_BOUND, data, model

from deel.lipdp.accounting import GaussianStep, PoissonSampling, compute_epsilon
from deel.lipdp.callbacks import DP_Accountant, DP_BackupAndRestore
from deel.lipdp.dynamic import AdaptiveQuantileClipping, LaplaceAdaptiveLossGradientClipping
from deel.lipdp.layers import DP_BoundedInput, DP_ClipGradient, DP_Flatten, DP_QuickSpectralDense
from deel.lipdp.ledger import Ledger
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.model import get_eps_delta
from deel.lipdp.privacy import planned_entries
from deel.lipdp.sampling import poisson_batches
from deel.lipdp.sensitivity import get_max_epochs

X, Y = data(80)
STEPS = 10  # of one epoch; executions of seven do not end where it ends
CLIP = 0.25

# Beyond rounding, and far below what one step costs.
ROOM = 1 + 1e-9


def clipped(**kwargs):
    layers = [
        DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE),
        DP_Flatten(),
        DP_QuickSpectralDense(4),
        DP_ClipGradient(CLIP, dynamic=True, name="clip"),
    ]
    return model(layers, **{"n": 80, "sampling": "poisson", "noise_multiplier": 3.0, **kwargs})


def batches(**kwargs):
    return poisson_batches(X, Y, 8, **kwargs)


def ignore(values):
    pass


def quantile(patience=1, noise_multiplier=2.0, **kwargs):
    return AdaptiveQuantileClipping(batches(**kwargs), patience, noise_multiplier, log_fn=ignore)


def same_event(patience):
    """Its updates and the training steps are one event in the ledger."""
    return quantile(patience, noise_multiplier=3.0)


def laplace(patience=1, epsilon=0.3):
    return LaplaceAdaptiveLossGradientClipping(batches(), patience, epsilon, log_fn=ignore)


def accountant(budget):
    return DP_Accountant(ignore, epsilon_max=budget)


def ordered(accountant_first, budget, clipping):
    """Callbacks in both orders: a release that comes before the accountant's turn is within the budget too."""
    return [accountant(budget), clipping] if accountant_first else [clipping, accountant(budget)]


@pytest.mark.parametrize(
    ("make", "epochs", "patience", "steps_per_execution", "accountant_first"),
    [
        (same_event, 3, 1, 1, False),
        (quantile, 5, 2, 7, True),
        pytest.param(laplace, 2, 3, 7, False, marks=pytest.mark.full),
    ],
)
def test_a_budget_of_so_many_epochs_is_spent_in_as_many(make, epochs, patience, steps_per_execution, accountant_first):
    private = clipped(compile_arguments={"steps_per_execution": steps_per_execution})
    clipping = make(patience)
    plan = collections.Counter()
    for event, count in planned_entries(private, epochs, [clipping]):
        plan[event] += count
    budget = get_eps_delta(private, epochs, callbacks=[clipping])[0] * ROOM
    assert get_max_epochs(budget, private, callbacks=[clipping]) == epochs
    history = private.fit(
        batches(), epochs=epochs + 3, verbose=0, callbacks=ordered(accountant_first, budget, clipping)
    )
    assert len(history.epoch) == epochs
    assert dict(private.ledger.entries()) == plan
    assert get_eps_delta(private)[0] <= budget
    assert get_max_epochs(budget, private, callbacks=[clipping]) == 0


def test_what_is_left_between_two_epochs_is_spent_to_the_last_step():
    private = clipped(compile_arguments={"steps_per_execution": 7})
    clipping = quantile(2)
    [(step, _), (update, _)] = planned_entries(private, 1, [clipping])
    budget = compute_epsilon([(step, 2 * STEPS + 3), (update, 2)], 1e-5) * ROOM
    private.fit(batches(), epochs=9, verbose=0, callbacks=[clipping, accountant(budget)])
    assert private.ledger.entries() == [(step, 2 * STEPS + 3), (update, 2)]


@pytest.mark.parametrize("accountant_first", [True, False])
def test_a_budget_without_room_for_the_first_update(accountant_first):
    """A regression test: listed before the accountant, an update was made before the budget was in force."""
    private, clipping = clipped(), quantile(noise_multiplier=0.5)
    [(step, _), (update, _)] = planned_entries(private, 1, [clipping])
    budget = compute_epsilon([(step, 4)], 1e-5) * ROOM
    assert compute_epsilon([(update, 1)], 1e-5) > budget
    clipping._norms = lambda: 1 / 0  # it must not look
    private.fit(batches(), epochs=2, verbose=0, callbacks=ordered(accountant_first, budget, clipping))
    assert private.ledger.entries() == [(step, 4)]
    assert private.get_layer("clip").clip_value == CLIP


def test_without_room_for_another_update_training_goes_on(caplog):
    private, clipping = clipped(), quantile(noise_multiplier=1.0)
    [(step, _), (update, _)] = planned_entries(private, 1, [clipping])
    budget = compute_epsilon([(step, 3 * STEPS), (update, 1)], 1e-5) * ROOM
    assert compute_epsilon([(step, STEPS), (update, 2)], 1e-5) > budget
    with caplog.at_level("INFO", logger="deel.lipdp"):
        private.fit(batches(), epochs=5, verbose=0, callbacks=[clipping, accountant(budget)])
    assert private.ledger.entries() == [(step, 3 * STEPS), (update, 1)]
    assert "no room for another update" in caplog.text


def test_a_budget_holds_for_what_is_restored_after_it_was_set(tmp_path):
    """Whether the update or the accountant comes first: what an earlier run has spent is known to both."""
    private, clipping = clipped(), quantile(noise_multiplier=1.0)
    [(step, _), (update, _)] = planned_entries(private, 1, [clipping])
    earlier = Ledger()
    for event, count in [(step, 6), (update, 1)]:
        earlier.counter(event).assign(count)
    earlier.write(tmp_path / "ledger.json")
    budget = compute_epsilon([(step, 9), (update, 1)], 1e-5) * ROOM
    callbacks = [clipping, accountant(budget), DP_BackupAndRestore(tmp_path)]
    private.fit(batches(), epochs=3, verbose=0, callbacks=callbacks)
    assert dict(private.ledger.entries()) == {step: 9, update: 1}


def test_batches_of_a_known_seed_fit_no_budget():
    """A regression test: only the training's own batches were asked for their seed before the first step."""
    private, clipping = clipped(), quantile(seed=1)
    assert get_max_epochs(1.0, private, callbacks=[clipping]) == 0
    private.fit(batches(), epochs=2, verbose=0, callbacks=[clipping, accountant(1.0)])
    assert private.ledger.entries() == [] and get_eps_delta(private)[0] == 0.0
    assert private.get_layer("clip").clip_value == CLIP


# -- what is said ---------------------------------------------------------------------------------------------------


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "deel.lipdp.callbacks"]


@pytest.mark.parametrize("steps_per_execution", [1, 7])
def test_training_that_a_budget_ends_says_so_once(steps_per_execution, caplog):
    private = clipped(compile_arguments={"steps_per_execution": steps_per_execution})
    [(step, _)] = planned_entries(private, 1)
    spent = compute_epsilon([(step, 11)], 1e-5)
    private.fit(batches(), epochs=4, verbose=0, callbacks=[accountant(spent * ROOM)])
    [message] = said(caplog)
    assert f"the budget of epsilon {spent:g} is spent in epoch 2 (epsilon {spent:.6g}): training ends" in message
    assert "Calibrate the noise for all epochs" in message
    assert private.ledger.steps == 11


def test_of_two_budgets_the_one_that_is_spent_says_so(caplog):
    private = clipped()
    [(step, _)] = planned_entries(private, 1)
    least = compute_epsilon([(step, 4)], 1e-5) * ROOM
    private.fit(batches(), verbose=0, callbacks=[accountant(2 * least), accountant(least)])
    assert [f"the budget of epsilon {least:g}" in message for message in said(caplog)] == [True]


def test_a_budget_that_ends_two_steps_early_says_so(caplog):
    private = clipped()
    [(step, _)] = planned_entries(private, 1)
    budget = compute_epsilon([(step, STEPS - 2)], 1e-5) * ROOM
    private.fit(batches(), verbose=0, callbacks=[accountant(budget)])
    assert private.ledger.steps == STEPS - 2 and "is spent in epoch 1" in said(caplog)[0]


class Skip(keras.callbacks.Callback):
    """As a run that resumes in the middle of an epoch."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def on_epoch_begin(self, epoch, logs=None):
        self.model.skip_steps(self.count)


@pytest.mark.parametrize(("skipped", "accumulated"), [(4, None), (0, 2)])
def test_a_plan_that_ends_with_its_budget_says_nothing(skipped, accumulated, caplog):
    private = clipped()
    private.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulated), loss=private.loss_function)
    [(step, _)] = planned_entries(private, 1)
    budget = compute_epsilon([(step, STEPS - skipped)], 1e-5) * ROOM
    private.fit(batches(), verbose=0, callbacks=[Skip(skipped), accountant(budget)])
    assert private.ledger.steps == STEPS - skipped and said(caplog) == []


@pytest.mark.parametrize("budget", ["spent", "too small"])
def test_a_budget_without_room_for_one_step_says_so(budget, caplog):
    private = clipped()
    [(step, _)] = planned_entries(private, 1)
    limit = compute_epsilon([(step, 3)], 1e-5) * ROOM
    if budget == "spent":
        private.fit(batches(), epochs=2, verbose=0, callbacks=[accountant(limit)])
        assert "is spent in epoch 1" in said(caplog)[0]
        caplog.clear()
    else:
        limit = compute_epsilon([(step, 1)], 1e-5) / 2
    history = private.fit(batches(), epochs=2, verbose=0, callbacks=[accountant(limit)])
    [message] = said(caplog)
    assert f"no step fits the budget of epsilon {limit:g}" in message and "those of no example" in message
    assert message.endswith("Start with a new model, raise epsilon_max, or use more noise.")
    assert len(history.epoch) == 1


def test_a_seed_that_voids_the_budget_is_named(caplog):
    clipped(noise_seed=1).fit(batches(), verbose=0, callbacks=[accountant(1.0)])
    [message] = said(caplog)
    assert "no step fits" in message and "Leave the seeds out" in message


@pytest.mark.parametrize("steps_per_execution", [1, 7])
def test_a_plan_that_ends_where_its_budget_ends_says_nothing(steps_per_execution, caplog):
    private = clipped(compile_arguments={"steps_per_execution": steps_per_execution})
    budget = get_eps_delta(private, 2)[0] * ROOM
    private.fit(batches(), epochs=2, verbose=0, callbacks=[accountant(budget)])
    assert private.ledger.steps == 2 * STEPS
    assert said(caplog) == []


def test_a_model_that_adds_no_noise_is_refused():
    layers = [DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE), DP_Flatten(), DP_QuickSpectralDense(4)]
    plain = keras.Sequential(layers, name="plain")
    plain.compile(loss=DP_TauCategoricalCrossentropy())
    before = plain.get_weights()
    with pytest.raises(TypeError, match="a DP_Sequential or a DP_Model.*Sequential 'plain'.*adds no noise"):
        plain.fit(X, Y, verbose=0, callbacks=[accountant(None)])
    np.testing.assert_array_equal(plain.get_weights()[0], before[0])


# -- releases and limits without training ----------------------------------------------------------------------------


class Budget:
    """Allows what it is told, and limits training to so many steps."""

    def __init__(self, allowed=True, steps=100):
        self.allowed, self.steps, self.asked, self.model = allowed, steps, [], None

    def allows(self, event, count):
        self.asked.append((event, count))
        return self.allowed

    def update(self):
        if self.model is not None:
            self.model.set_limit(self.steps)


def test_every_budget_is_asked_and_nothing_is_counted_if_one_refuses():
    private, event = clipped(), GaussianStep(PoissonSampling(0.1), 1.0)
    assert private.release(event, 2)  # without a budget
    first, second = Budget(True), Budget(False)
    private.add_budget(first)
    assert private.release(event, 3)
    private.add_budget(second)
    assert not private.release(event, 4)
    assert first.asked == [(event, 3), (event, 4)] and second.asked == [(event, 4)]
    assert private.ledger.entries() == [(event, 5)]


def test_of_several_limits_the_least_holds_until_a_release_or_a_fit():
    private = clipped()
    private._plan = private._make_plan()
    for steps, reached in [(3, False), (0, True), (5, True)]:
        budget = Budget(steps=steps)
        budget.model = private
        private.add_budget(budget)
        assert private.reached_limit() is reached
    private._budgets = private._budgets[:1]
    assert private.release(GaussianStep(PoissonSampling(0.1), 1.0))
    assert not private.reached_limit()  # each was asked again
    private.ledger.counter(private.event_in_force).assign(3)
    assert private.reached_limit()


def test_a_search_is_not_repeated_while_nothing_was_spent():
    """The accountant limits training when it begins, and again in its first epoch: with PLD each can take a minute."""

    class Counts:
        calls = 0

        def epsilon(self, entries, delta):
            self.calls += 1
            return 0.1 * math.fsum(count for _, count in entries)

    private, known = clipped(), Counts()
    private._plan = private._make_plan()
    budget = DP_Accountant(ignore, known, epsilon_max=3.0 * ROOM)
    budget.set_model(private)
    budget.on_train_begin()
    calls = known.calls
    budget.on_epoch_begin(0)
    assert known.calls == calls
    limit = int(private._limit)
    assert limit == 30
    private.release(private.event_in_force, 10)
    assert int(private._limit) == limit and known.calls > calls + 1  # 20 more than 10
