"""The mixin that makes a Keras model's training private: one step, one ledger, one noise source."""

import contextlib
import dataclasses
import inspect
import logging
import types
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from deel.lipdp import _checks, _scalars
from deel.lipdp._training.noise_source import make_noise_source
from deel.lipdp._training.tensorflow import (
    CertifiedWeights,
    PassPosition,
    StepPlan,
    StepScales,
    per_example_gradient_norms,
    private_step,
)
from deel.lipdp._types import Bound, PathLike, Tensor
from deel.lipdp.accounting import GaussianStep, UndeclaredSampling
from deel.lipdp.accounting._types import Event
from deel.lipdp.bounds import (
    check_model,
    compute_gradient_bounds,
    gradient_bounds_in_force,
    output_gradient_bound,
    output_gradient_bound_in_force,
    variable_key,
)
from deel.lipdp.layers import DP_ClipGradient, DP_Lambda
from deel.lipdp.ledger import Ledger
from deel.lipdp.noise import joint_noise_multiplier, noise_stddevs
from deel.lipdp.parameters import DatasetMetadata, DPParameters
from deel.lipdp.sampling import Sampler, fixed_batch_size, multiplicity_behind, sampling_of

if TYPE_CHECKING:
    from keras import Model as _Model
else:
    _Model = object  # a mixin, which each subclass puts before a Keras class of its own

__all__ = ["PrivateModel"]

_logger = logging.getLogger(__name__)

_NO_LIMIT = np.iinfo("int64").max

# Noise below this would be flushed to zero in single precision, with the gradient unprotected.
_SMALLEST_STDDEV = 1e-30

# Of a bound that was computed twice.
_ROUNDING = 1e-6


def _takes_probabilities(loss):
    """Whether a loss of Keras's own, a function or an object, was left at `from_logits=False`."""
    if isinstance(loss, keras.losses.Loss):
        return hasattr(keras.losses, type(loss).__name__) and getattr(loss, "from_logits", None) is False
    if not hasattr(keras.losses, getattr(loss, "__name__", "")):
        return False
    parameter = inspect.signature(loss).parameters.get("from_logits")
    return parameter is not None and parameter.default is False


def _refuse(who, expected, received, remedy, error=ValueError):
    raise error(_checks.message(who, expected, received, remedy))


class Budget(Protocol):
    """What `PrivateModel.add_budget` takes."""

    def allows(self, event: Event, count: int) -> bool: ...

    def update(self) -> None: ...


class PrivateModel(_Model):
    """Mixin listed before the Keras class; subclasses define `layers_forward_order()` and `layer_calls()`."""

    @classmethod
    def _check_arguments(cls, dp_parameters, dataset_metadata):
        for name, value, kind in (
            ("dp_parameters", dp_parameters, DPParameters),
            ("dataset_metadata", dataset_metadata, DatasetMetadata),
        ):
            if not isinstance(value, kind):
                remedy = f"Pass a deel.lipdp.{kind.__name__}."
                _refuse(cls.__name__, f"{name} to be {kind.__name__}", f"{value!r}", remedy, TypeError)

    def _start(self, dp_parameters, dataset_metadata, debug):
        self.dp_parameters = dp_parameters
        self.dataset_metadata = dataset_metadata
        if dp_parameters.delta * dataset_metadata.nb_samples_train >= 1:
            _logger.warning(
                "%s: delta=%g is at least 1 / n (n = %d): it allows publishing a whole record. default_delta_value "
                "proposes a smaller one.",
                self._who(),
                dp_parameters.delta,
                dataset_metadata.nb_samples_train,
            )
        self.debug = bool(debug)
        self.ledger = Ledger()
        self._noise_source = make_noise_source(dp_parameters)
        self._limit = tf.Variable(_NO_LIMIT, dtype=tf.int64, trainable=False)
        self._batches_to_skip = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._position = PassPosition()
        self._budgets = ()
        self._certified = None
        self._plan = None
        self._graphs = types.SimpleNamespace(functions={})  # Keras would track a plain dict
        self._sampler = None
        self._loss_weight = 1.0
        self.microbatch_size = None
        self.loss_function = None

    def _who(self):
        return f"{type(self).__name__} '{self.name}'"

    def layers_backward_order(self) -> list[keras.layers.Layer]:
        """list of layers, from output to input."""
        return self.layers_forward_order()[::-1]

    # -- compile ---------------------------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "rmsprop",
        loss: str | keras.losses.Loss | Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        loss_weights: float | None = None,
        jit_compile: bool = False,
        microbatch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`, for one loss with a known bound.

        Args:
            optimizer, metrics, run_eagerly, steps_per_execution, ...: as in Keras.
            loss: a loss of `deel.lipdp.losses`, or any Keras loss if the model ends with `DP_ClipGradient`.
            loss_weights: None or one number in [0, 1].
            jit_compile: bool. False by default: on a CPU a step is faster without XLA, and batches of varying size do
                not recompile it. With XLA pad them, and use a loss of `deel.lipdp.losses`; its metrics count each row
                by its weight, so rows of weight 0 still count nothing.
            microbatch_size: int >= 1 or None. A step passes a larger batch through the network in parts of this many
                rows, adds their gradients, and then adds noise, counts and updates once: memory for the activations
                of this many rows is enough for a batch of any size, and the result is that of one pass up to rounding.

        Raises:
            TypeError: for a layer without bounds, or a `microbatch_size` that is no integer.
            ValueError: for a loss without a known bound, or for `debug=True` without `run_eagerly=True`.
        """
        if loss is None or isinstance(loss, (list, tuple, dict)):
            _refuse(self._who(), "one loss", f"loss={loss!r}", "Pass a loss of deel.lipdp.losses to compile.")
        if self.debug and not kwargs.get("run_eagerly"):
            _refuse(
                self._who(),
                "run_eagerly=True together with debug=True",
                f"run_eagerly={kwargs.get('run_eagerly')}",
                "The norms of a step are only known eagerly: compile(..., run_eagerly=True).",
            )
        weights = [1.0] if loss_weights is None else keras.tree.flatten(loss_weights)
        if len(weights) != 1 or not 0.0 <= weights[0] <= 1.0:
            _refuse(
                self._who(),
                "loss_weights to be one number in [0, 1]",
                f"loss_weights={loss_weights!r}",
                "A larger weight would be undone by the gradient bound: raise the learning rate instead.",
            )
        if microbatch_size is not None:
            microbatch_size = _checks.integer(self._who(), "microbatch_size", microbatch_size)
        if jit_compile and kwargs.get("metrics"):
            # Padded rows cannot be cut off where shapes are static, and Keras's unweighted metrics would count them.
            if kwargs.get("weighted_metrics"):
                _refuse(
                    self._who(),
                    "metrics or weighted_metrics with jit_compile=True",
                    "both",
                    "With XLA all metrics are weighted: pass them as weighted_metrics.",
                )
            kwargs["weighted_metrics"] = kwargs.pop("metrics")
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            jit_compile=jit_compile,
            **kwargs,
        )
        self._loss_weight = float(weights[0])
        self.microbatch_size = microbatch_size
        self.loss_function = keras.losses.get(loss)
        self._graphs.functions.clear()
        if self.layers_forward_order():
            check_model(self)
            output_gradient_bound(self)
            self._warn_of_what_may_not_be_meant()
        width = self.output_shape[-1] if self.built else None
        if width and width > 1 and getattr(self.loss_function, "num_outputs", width) is None:
            _logger.warning(
                "%s: %s does not know its number of outputs, so its bound, and the noise, are those of a single one. "
                "Pass num_outputs=%d for a smaller bound.",
                self._who(),
                type(self.loss_function).__name__,
                width,
            )

    def _warn_of_what_may_not_be_meant(self):
        ends = [layer for layer in self.layers_backward_order() if not isinstance(layer, DP_ClipGradient)]
        # A DP_Lambda at the end may be a softmax.
        if _takes_probabilities(self.loss_function) and not isinstance(ends[0], DP_Lambda):
            name = getattr(self.loss_function, "__name__", type(self.loss_function).__name__)
            _logger.warning(
                "%s: the loss %s takes probabilities, and the model gives logits: it may not learn. Use "
                "keras.losses.%s(from_logits=True), or a loss of deel.lipdp.losses.",
                self._who(),
                name,
                "".join(word[:1].upper() + word[1:] for word in name.split("_")),
            )
        guard, max_norm = self.layers_forward_order()[0], self.dataset_metadata.max_norm
        if guard.upper_bound > max_norm * (1 + _ROUNDING):
            _logger.warning(
                "%s: upper_bound=%g of DP_BoundedInput is above max_norm=%g of the metadata: the noise is made for "
                "upper_bound, and shorter examples drown in it. Pass the smaller one as upper_bound.",
                self._who(),
                guard.upper_bound,
                max_norm,
            )

    def get_compile_config(self) -> dict[str, Any] | None:
        """As in Keras, with `microbatch_size`."""
        config = super().get_compile_config()
        return config and {**config, "microbatch_size": self.microbatch_size}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles with what `get_compile_config` returned; called by `keras.models.load_model`."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    # -- train -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        *,
        class_weight: dict[int, float] | None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`, with differential privacy.

        The loss and the metrics it logs are computed on private data and are **not** covered by epsilon.

        Args:
            x: a data set of `poisson_batches` (priced with amplification by sampling), or anything Keras accepts: its
                batches are then undeclared, and each step is priced as one full release.
            batch_size: only for arrays; must be that of the metadata, which is the default.
            class_weight: dict of public constants in [0, 1].
            y, epochs, **kwargs: as in Keras.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            ValueError: for data that contradict the metadata, class weights above 1, or, with a data set, a class
                without a weight or a `validation_split`.
        """
        if class_weight is not None and not (
            isinstance(class_weight, dict) and all(0.0 <= weight <= 1.0 for weight in class_weight.values())
        ):
            _refuse(
                self._who(),
                "class_weight to be a dict of weights in [0, 1]",
                f"class_weight={class_weight!r}",
                "Larger ones would be undone by the gradient bound: divide all by the largest.",
            )
        if isinstance(x, tf.data.Dataset):
            self._check_arguments_of_a_dataset(class_weight, **kwargs)
        sampler = self._check_data(x)
        if self.dp_parameters.noise_multiplier == 0:
            _logger.warning(
                "%s: noise_multiplier=0: no noise is added, so nothing is private and epsilon is infinite.", self._who()
            )
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # Keras warns that it ignores shuffle=True
        if batch_size is not None and batch_size != self.dataset_metadata.batch_size:
            self._refuse_batch_size(batch_size)
        if y is not None:  # arrays
            batch_size = self.dataset_metadata.batch_size
        if self.built and self.loss_function is not None:
            labels = keras.utils.unpack_x_y_sample_weight(x.element_spec)[1] if isinstance(x, tf.data.Dataset) else y
            self._build_state(labels)
        with self._training_on(sampler):
            history = super().fit(x, y, batch_size=batch_size, epochs=epochs, class_weight=class_weight, **kwargs)
        self.restore_constraints()  # optimizers may average weights when training ends
        return history

    def _check_arguments_of_a_dataset(self, class_weight, validation_split=0.0, validation_data=None, **_):
        if validation_split and validation_data is None:
            _refuse(
                self._who(),
                "validation_split together with arrays only",
                f"validation_split={validation_split} with a data set",
                "Split the arrays first, make the data set of one part, and pass the other as validation_data=(x, y).",
            )
        if class_weight is not None:
            width = self.output_shape[-1] if self.built else 1
            # One output tells two classes apart, and is one of `nb_classes` in the metadata of a table.
            classes = range(max(2, width, self.dataset_metadata.nb_classes or 0))
            missing = [label for label in classes if label not in class_weight]
            if missing:
                _refuse(
                    self._who(),
                    f"class_weight with a key for each of the classes 0 to {classes[-1]}",
                    f"none for {missing}",
                    "Give the others weight 1.0.",
                )

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As in Keras; the batch is of unknown origin and priced as one full release."""
        with self._training_on(None):
            return super().train_on_batch(*args, **kwargs)

    @contextlib.contextmanager
    def _training_on(self, sampler):
        """Says where batches come from while the block runs, also if it runs inside another such block."""
        outer = self._sampler, self._plan, self.train_function, self._budgets
        self._sampler, self._plan = sampler, None
        self._position.start_anew()
        self._batches_to_skip.assign(0)
        try:
            yield
        finally:
            self._sampler, self._plan, self.train_function, self._budgets = outer
            self._apply_budgets()
            self._position.start_anew()  # an outer pass that goes on counts once more, never less
            self._batches_to_skip.assign(0)

    @property
    def sampler(self) -> Sampler | None:
        """`deel.lipdp.sampling.Sampler` of the running `fit`; None outside of one and for data of unknown origin."""
        return self._sampler

    def skip_steps(self, count: int) -> None:
        """Lets the next `count` batches of the running `fit` pass by: drawn, and neither trained on nor counted.

        For a run that resumes in the middle of an epoch.
        """
        self._batches_to_skip.assign(count)

    def _refuse_batch_size(self, batch_size):
        _refuse(
            self._who(),
            f"batches of {self.dataset_metadata.batch_size} examples, as the metadata say",
            f"batch_size={batch_size}",
            "Make both the same: gradients and noise are divided by the batch size of the metadata.",
        )

    def _check_data(self, x):
        """The `Sampler` of the data, None for batches of unknown origin."""
        metadata, sampler = self.dataset_metadata, sampling_of(x)
        if sampler is not None:
            declared = (metadata.nb_samples_train, metadata.batch_size)
            if (sampler.num_examples, sampler.batch_size) != declared:
                _refuse(
                    self._who(),
                    f"a sampler of {declared[0]} examples and batch size {declared[1]}, as the metadata say",
                    f"{sampler.num_examples} examples and batch size {sampler.batch_size}",
                    "Make both the same: noise and sampling probability follow from them.",
                )
            if metadata.sampling not in (None, sampler.sampling.name):
                _refuse(
                    self._who(),
                    f"batches that are '{metadata.sampling}', as the metadata say",
                    f"'{sampler.sampling.name}'",
                    "Make both the same: a plan made from the metadata would price another mechanism.",
                )
            return sampler
        if metadata.sampling is not None:
            _refuse(
                self._who(),
                f"batches of a sampler that are '{metadata.sampling}', as the metadata say",
                f"{type(x).__name__} of unknown sampling",
                f"Pass the data set of {metadata.sampling}_batches itself (map_fn= transforms it), or leave sampling "
                "undeclared.",
            )
        if multiplicity_behind(x) > 1:
            _refuse(
                self._who(),
                "one row for each example in batches of unknown sampling",
                f"a data set made from one with {multiplicity_behind(x)} views of each",
                "Pass the data set of the sampler itself: only then do the views of an example share its bound.",
            )
        found = fixed_batch_size(x)
        if found not in (None, metadata.batch_size):
            self._refuse_batch_size(found)
        _logger.warning(
            "%s: the sampling of the batches is not declared, so each step is priced as one full release (zero_out "
            "relation, no amplification). "
            "deel.lipdp.sampling.poisson_batches(x, y, batch_size) makes batches of a far smaller epsilon.",
            self._who(),
        )
        return None

    def make_train_function(self, force: bool = False) -> None:
        """As in Keras; also fixes what the steps to come release. A change of that makes a new graph."""
        if self.distribute_strategy.num_replicas_in_sync > 1:
            _refuse(self._who(), "one replica", "a distribution strategy of several", "Train on one device.")
        # On by default on recent GPUs; its 10 bits of mantissa are beyond the slack of the bounds.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        self._certify_new_weights()
        self._plan = self._make_plan()
        key = (self._plan, self.run_eagerly, self.jit_compile, self.steps_per_execution)
        self._apply_budgets()
        self.train_function = None if force else self._graphs.functions.get(key)
        super().make_train_function()
        self._graphs.functions[key] = self.train_function

    def _make_plan(self):
        if not self.built or self.loss_function is None:
            _refuse(
                self._who(),
                "a built and compiled model",
                f"built={self.built}, loss={self.loss_function!r}",
                "State input_shape on DP_BoundedInput and call compile first.",
            )
        bounds = compute_gradient_bounds(self)
        stddevs = noise_stddevs(self, bounds)
        means = [stddev / self.dataset_metadata.batch_size for stddev in stddevs.values()]
        # Written so that NaN is refused, wherever it stands.
        held = all(_SMALLEST_STDDEV <= mean <= 1 / _SMALLEST_STDDEV for mean in means)
        if not held and not all(mean == 0 for mean in means):
            _refuse(
                self._who(),
                f"noise of stddev between {_SMALLEST_STDDEV} and {1 / _SMALLEST_STDDEV}, where single precision holds",
                ", ".join(f"{mean:.3g}" for mean in means),
                "Rescale the data and the upper_bound of DP_BoundedInput, or the nm_coef of layers.",
            )
        sampling = self._sampler.sampling if self._sampler else UndeclaredSampling()
        scales = self.scales_in_force()
        plan = StepPlan(
            event=GaussianStep(sampling, joint_noise_multiplier(self, bounds)),
            scales=scales if scales.are_constant() else None,
            batch_size=self.dataset_metadata.batch_size,
            loss_weight=self._loss_weight,
            steps_per_count=self._sampler.steps_per_count if self._sampler else 1,
            multiplicity=self._sampler.multiplicity if self._sampler else 1,
        )
        self.ledger.counter(plan.event)  # variables cannot be made inside a graph
        if self._noise_source.seeded or (self._sampler and self._sampler.seeded):
            self.ledger.seeded = True
        return plan

    def scales_in_force(self) -> StepScales:
        """`StepScales` at the current clip values: floats, or scalar tensors where a clip value moves."""
        bounds = gradient_bounds_in_force(self)
        stddevs = noise_stddevs(self, bounds)
        noisy = self.dp_parameters.noise_multiplier > 0
        least = _SMALLEST_STDDEV * self.dataset_metadata.batch_size if noisy else 0.0
        keys = self._keys()
        return StepScales(
            output_gradient_bound=output_gradient_bound_in_force(self),
            gradient_bounds=tuple(bounds[key] for key in keys),
            noise_stddevs=tuple(_scalars.maximum(stddevs[key], least) for key in keys),
        )

    @property
    def event_in_force(self) -> GaussianStep | None:
        """The event the next training step is counted under; None before training."""
        return self._plan.event if self._plan else None

    def add_budget(self, budget: Budget) -> None:
        """Limits the spending of the running `fit`.

        Args:
            budget: object with `allows(event, count)`, asked before a release that is not a training step, and
                `update()`, which calls `set_limit` with what is left for the event in force.
        """
        self._budgets = (*self._budgets, budget)
        self._apply_budgets()

    def _apply_budgets(self):
        self._limit.assign(_NO_LIMIT)
        if self._plan is not None:
            for budget in self._budgets:
                budget.update()

    def release(self, event: Event, count: int = 1) -> bool:
        """Counts a release that is not a training step: on disk first if a journal is open, then in the ledger.

        Args:
            event: the event of the release, which the caller makes afterwards.
            count: int >= 1.

        Returns:
            bool. False if a budget has no room for it: nothing is counted, and the caller must not make it.
        """
        if not all(budget.allows(event, count) for budget in self._budgets):
            return False
        self.ledger.reserve(event, count)
        self.ledger.counter(event).assign_add(count)
        if self._noise_source.seeded:
            self.ledger.seeded = True
        self._apply_budgets()
        return True

    def set_limit(self, count: int) -> None:
        """Lets training count at most that many more of the event in force (steps or passes), tested in the graph."""
        counted = int(self.ledger.counter(self.event_in_force).numpy())
        self._limit.assign(min(counted + count, int(self._limit)))  # of several budgets the least holds

    def reached_limit(self) -> bool:
        """Whether the next step would be skipped."""
        if self.event_in_force is None:
            return False
        due = int(self._position.due(self._plan.steps_per_count))
        return int(self.ledger.counter(self.event_in_force).numpy()) + due > int(self._limit)

    def train_step(self, data: Any) -> dict[str, Tensor]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = self._checked_inputs(x)
        self._certify_new_weights()
        plan = self._plan or self._make_plan()  # called directly: batches of unknown origin
        self._build_state(y)
        # What follows reads and writes counts, so it waits for the batch: in a data set of unknown length the last,
        # failing fetch is no step. (Of the identities: a function keeps no control edge that starts at its arguments.)
        with tf.control_dependencies([tf.identity(t) for t in tf.nest.flatten((x, y))]):
            skipped = tf.minimum(self._batches_to_skip, 1)
            due = self._position.due(plan.steps_per_count)
        within_limit = self.ledger.counter(plan.event).value + due <= self._limit

        def step():
            with tf.control_dependencies([self._position.count(plan.steps_per_count)]):
                private_step(self, plan, self._certified, due, x, y, sample_weight)
            return 0

        taken = tf.cond((skipped == 0) & within_limit, step, lambda: 0)
        with tf.control_dependencies([taken]):
            self._batches_to_skip.assign_sub(skipped)
            self._position.advance()
        return self.get_metrics_result()

    def _build_state(self, y):
        """Makes the variables of optimizer and metrics before the step needs them.

        XLA refuses those made in a branch of the step's graph, and TensorFlow traces a graph that makes some twice.

        Args:
            y: labels, or what has their shape and dtype; None if that is not known.
        """
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        metrics, shape = self._compile_metrics, tf.TensorShape(getattr(y, "shape", None))
        if metrics is not None and not metrics.built and shape.rank is not None:
            labels = keras.KerasTensor((None, *shape[1:]), keras.backend.standardize_dtype(y.dtype))
            metrics.build(labels, keras.KerasTensor((None, *self.output_shape[1:])))

    def _checked_inputs(self, x):
        """Convolutions are certified for one image size: no other shape may reach them."""
        expected = (None, *self.dataset_metadata.input_shape)
        shape = getattr(x, "shape", None)
        if shape is None or not tf.TensorShape(shape).is_compatible_with(expected):
            received = f"inputs of shape {tuple(shape)}" if shape is not None else type(x).__name__
            _refuse(self._who(), f"inputs of shape {expected}", received, "Reshape the data, or state their shape.")
        return tf.ensure_shape(tf.cast(x, self.compute_dtype), expected)

    def update_loss(self, value: Tensor, count: Tensor) -> None:
        """Adds a batch's mean loss to the average that Keras logs."""
        self._loss_tracker.update_state(value, sample_weight=count)

    def add_noise(self, gradients: Sequence[Tensor], stddevs: Sequence[Bound]) -> list[Tensor]:
        """Adds fresh Gaussian noise to each tensor.

        Args:
            gradients: list of tensors.
            stddevs: list of float.

        Returns:
            list of tensors.
        """
        return self._noise_source.add(gradients, stddevs)

    # -- constraints and state -------------------------------------------------------------------------------------

    def _constrained(self):
        return [v for v in self.variables if getattr(v, "constraint", None) is not None]

    def _certify_new_weights(self):
        # Later assignments from outside are found out by the step itself.
        if self._certified is None or not self._certified.cover(self._constrained()):
            self.restore_constraints()

    def restore_constraints(self) -> None:
        """Projects every constrained weight that is outside its set; the others keep their values."""
        variables = self._constrained()
        for variable in variables:
            restore = getattr(variable.constraint, "restore", variable.constraint)
            variable.assign(restore(variable))
        if self._certified is not None and self._certified.cover(variables):
            self._certified.certify()
        else:
            self._certified = CertifiedWeights(variables)
            self._graphs.functions.clear()  # the graph of a step captures the copies

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        super().set_weights(weights)
        self.restore_constraints()

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        super().load_weights(*args, **kwargs)
        self.restore_constraints()

    def save(self, filepath: PathLike, *args: Any, **kwargs: Any) -> None:
        """As in Keras, to a `.keras` file: the older HDF5 format has no place for the ledger and is refused."""
        if str(filepath).endswith((".h5", ".hdf5")):
            _refuse(
                self._who(), "a .keras file", f"'{filepath}'", "HDF5 would forget the spent privacy: save to .keras."
            )
        super().save(filepath, *args, **kwargs)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        super().save_own_variables(store)
        store["ledger"] = np.frombuffer(self.ledger.to_json().encode(), dtype=np.uint8)
        store["noise_draws"] = self._noise_source.draws.numpy()

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        super().load_own_variables({key: store[key] for key in store.keys() if key.isdigit()})
        if "ledger" in store:
            self.ledger.merge_json(np.asarray(store["ledger"]).tobytes().decode(), "ledger")
        # A seeded study continues its noise where the weights stopped; a secret key never goes back.
        if "noise_draws" in store and self._noise_source.seeded:
            self._noise_source.draws.assign(int(np.asarray(store["noise_draws"])))

    def _private_config(self):
        return {
            "dp_parameters": dataclasses.asdict(self.dp_parameters),
            "dataset_metadata": dataclasses.asdict(self.dataset_metadata),
            "debug": self.debug,
        }

    @staticmethod
    def _deserialize_config(config):
        config = dict(config)
        config["dp_parameters"] = DPParameters(**config["dp_parameters"])
        config["dataset_metadata"] = DatasetMetadata(**config["dataset_metadata"])
        return config

    # -- signal to noise -------------------------------------------------------------------------------------------

    def _keys(self):
        keys = {
            id(variable): variable_key(layer, variable)
            for layer in self.layers_forward_order()
            for variable in layer.trainable_variables
        }
        return [keys[id(variable)] for variable in self.trainable_variables]

    def _gradient_norms(self, data, warn):
        if warn:
            _logger.warning("Gradient norms are computed on private data and are not covered by epsilon.")
        radius = output_gradient_bound(self)
        return per_example_gradient_norms(self, self.loss_function, radius, data)

    def signal_to_noise_elementwise(
        self, data: tuple[Tensor, ...], warn: bool = True
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, float]]:
        """Gradient norm of each example over its bound: how tight the bounds are.

        Reads private data, uncovered by epsilon: for studies on public data, or not to be released.

        Args:
            data: `(x, y)` or `(x, y, sample_weight)`, a batch of any size.
            warn: bool, whether a log line says that private data were read; False for examples that are not private.

        Returns:
            (ratios, norms, bounds): dicts by variable key. Norms and ratios are arrays with one entry for each example,
            bounds are floats; a ratio is at most 1.
        """
        bounds = compute_gradient_bounds(self)
        each, _ = self._gradient_norms(data, warn)
        norms = dict(zip(self._keys(), each.T, strict=True))
        return {key: norm / bounds[key] for key, norm in norms.items()}, norms, bounds

    def signal_to_noise_average(
        self, data: tuple[Tensor, ...], warn: bool = True
    ) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Norm of the batch-mean gradient over the bound for one example.

        Reads private data, uncovered by epsilon: for studies on public data, or not to be released.

        Args:
            data: `(x, y)` or `(x, y, sample_weight)`, a batch of exactly `batch_size` examples.
            warn: bool, as in `signal_to_noise_elementwise`.

        Returns:
            (ratios, norms, bounds): dicts of floats by variable key.

        Raises:
            ValueError: for a batch of another size.
        """
        if len(data[0]) != self.dataset_metadata.batch_size:
            self._refuse_batch_size(len(data[0]))
        bounds = compute_gradient_bounds(self)
        _, total = self._gradient_norms(data, warn)
        norms = dict(zip(self._keys(), total / self.dataset_metadata.batch_size, strict=True))
        return {key: norm / bounds[key] for key, norm in norms.items()}, norms, bounds
