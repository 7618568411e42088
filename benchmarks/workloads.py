"""The networks that are timed, as data that every framework's worker builds its own model from. Standard library only.

W1  the tutorial network of TF-Privacy on 28x28 images
W2  the quick start's network
W3  a VGG for CIFAR-10
W4  a tabular network; W4-6 and W4-12 have six and twelve hidden layers in place of three
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Conv:
    filters: int
    kernel_size: int
    strides: int = 1
    padding: str = "valid"


@dataclasses.dataclass(frozen=True)
class Activation:
    pass


@dataclasses.dataclass(frozen=True)
class Pool:
    size: int = 2
    strides: int = 2


@dataclasses.dataclass(frozen=True)
class Flatten:
    pass


@dataclasses.dataclass(frozen=True)
class Dense:
    units: int


@dataclasses.dataclass(frozen=True)
class Workload:
    input_shape: tuple
    layers: tuple
    num_classes: int = 10


def _vgg(*stages):
    for filters in stages:
        yield from (Conv(filters, 3, padding="same"), Activation()) * 2
        yield Pool()


def _tabular(hidden):
    return Workload((128,), (*(Dense(512), Activation()) * hidden, Dense(10)))


WORKLOADS = {
    "W1": Workload(
        (28, 28, 1),
        (
            Conv(16, 8, 2, "same"),
            Activation(),
            Pool(2, 1),
            Conv(32, 4, 2),
            Activation(),
            Pool(2, 1),
            Flatten(),
            Dense(32),
            Activation(),
            Dense(10),
        ),
    ),
    "W2": Workload(
        (28, 28, 1),
        (Conv(32, 3), Activation(), Pool(), Conv(64, 3), Activation(), Pool(), Flatten(), Dense(10)),
    ),
    "W3": Workload((32, 32, 3), (*_vgg(64, 128, 256), Flatten(), Dense(10))),
    "W4": _tabular(3),
    "W4-6": _tabular(6),
    "W4-12": _tabular(12),
}
