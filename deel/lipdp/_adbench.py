"""Where the tables of ADBench come from: a local file, or the collection's repository.

Han, Hu, Huang, Jiang and Zhao, "ADBench: anomaly detection benchmark" (NeurIPS 2022).
"""

import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from deel.lipdp import _checks

__all__ = ["TABLES", "read_table"]

# The commit whose files have the digests below.
_ORIGIN = "https://raw.githubusercontent.com/Minqi824/ADBench/3dac822/adbench/datasets/Classical/"


@dataclasses.dataclass(frozen=True)
class Table:
    """The public facts of a table, n rows of d numbers: they hold before any record is read."""

    file: str
    rows: int
    columns: int
    sha256: str


TABLES = {
    "campaign": Table("5_campaign.npz", 41188, 62, "74dd4d0072d6c6f1aabab63bc102f9633454f32bb936fa9bcfbd38f9f2386bcd"),
    "celeba": Table("8_celeba.npz", 202599, 39, "1cadfdea14cd8d240eca715a70c09c88af8621d086a7478c63f602d97adef0b5"),
    "magic": Table("22_magic.gamma.npz", 19020, 10, "0be375984d7af9ea7a63b12206c240840d8b7daa3607021c5fb8756407dd86f1"),
    "mammography": Table(
        "23_mammography.npz", 11183, 6, "a0308ac9712d78321073b1c2dc98dc37665c0f35c1cc33019416fe8f8d7de7ea"
    ),
    "pendigits": Table(
        "28_pendigits.npz", 6870, 16, "c4936b89dcdad59d303020e492f763a0f54170080d787c77497609acbb9c2d79"
    ),
    "shuttle": Table("32_shuttle.npz", 49097, 9, "26900b0f6be45d9ddb7a402c9b2f956ceda42d23a8ca4cf4406b8bc1352823d1"),
    "skin": Table("33_skin.npz", 245057, 3, "d02aa01ffc1b6bf2b8b1ac250c90e8a8eacd0cefc962940ed5cc4bf5deac9c95"),
    "yeast": Table("47_yeast.npz", 1484, 8, "bbb15c873d78a4f6a589f46d0f75814595e2282d2ae7ce7779c750f276c3770d"),
}


def read_table(name, data_dir=None):
    """Reads a table from the first place that applies.

    Args:
        name: str, a key of `TABLES`.
        data_dir: path of a folder that holds the file, or a folder `adbench` with it, or None: the environment variable
            LIPDP_DATA_DIR, and without it the collection's repository, from which Keras downloads it once.

    Returns:
        `(x, y)`: float32 array (n, d) and int64 array (n,), 1 for anomalies.

    Raises:
        ValueError: for an unknown name, and for a file that cannot be had or is another one.
    """
    table = _checks.choice("load_adbench_data", "dataset_name", name, TABLES)
    folder = data_dir or os.environ.get("LIPDP_DATA_DIR")
    path = _local(pathlib.Path(folder), table) if folder else _downloaded(table)
    if hashlib.sha256(path.read_bytes()).hexdigest() != table.sha256:
        raise _refusal(path, f"the file of SHA-256 {table.sha256}", "another file", "Replace it, or name no folder.")
    with np.load(path, allow_pickle=False) as archive:
        return archive["X"].astype("float32"), archive["y"].reshape(-1).astype("int64")


def _local(folder, table):
    for path in (folder / table.file, folder / "adbench" / table.file):
        if path.is_file():
            return path
    raise _refusal(folder / table.file, "a file of that name", "nothing there", "Check data_dir or LIPDP_DATA_DIR.")


def _downloaded(table):
    import keras

    try:
        return pathlib.Path(keras.utils.get_file(table.file, _ORIGIN + table.file, cache_subdir="datasets/adbench"))
    except Exception as error:  # urllib and Keras raise many kinds for a failed download
        raise _refusal(
            _ORIGIN + table.file,
            "a successful download",
            f"{type(error).__name__}: {error}",
            f"Without network, put {table.file} in a folder and name that folder by data_dir or LIPDP_DATA_DIR.",
        ) from error


def _refusal(source, expected, received, remedy):
    return ValueError(_checks.message(f"load_adbench_data '{source}'", expected, received, remedy))
