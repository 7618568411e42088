"""Dependencies point one way, public names are complete and documented, and importing the package is cheap."""

import ast
import functools
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import deel.lipdp

ROOT = pathlib.Path(deel.lipdp.__file__).parent

# A module imports from earlier rows, or from earlier in its own row.
LEVELS = [
    ["_types", "_checks", "_charts", "_reporting", "parameters", "accounting"],
    [
        "_scalars",
        "_convolution",
        "_per_example",
        "_linalg",
        "_frequencies",
        "_traced",
        "initializers",
        "optimizers",
        "layers",
        "losses",
        "_replacements",
    ],
    ["bounds", "noise", "privacy"],
    ["_training", "sampling", "ledger", "_private_model"],
    ["checkpoints", "callbacks", "dynamic", "model", "robustness", "sensitivity"],
    [
        "_adbench",
        "_datasets",
        "_front_end",
        "pipeline",
        "features",
        "recipes",
        "run_folder",
        "statement",
        "training_run",
    ],
    ["testing", "audit", "utils"],
    ["conversion", "html_report", "cli", "__main__"],
]
ORDER = {name: index for index, name in enumerate(sum(LEVELS, []))}

ESTABLISHED = {
    "model": (
        "DP_Sequential DP_Model DPParameters DP_Accountant compute_gradient_bounds get_eps_delta "
        "get_noise_multiplier_coefs local_noisify global_noisify"
    ),
    "layers": (
        "DP_BoundedInput DP_InputLayer DP_Flatten DP_Reshape DP_GroupSort DP_Abs DP_ScaledL2NormPooling2D "
        "DP_LayerCentering DP_NormalizeToBall DP_SpectralDense DP_QuickSpectralDense DP_SpectralConv2D "
        "DP_QuickSpectralConv2D DP_ClipGradient DPLayer DP_Permute DP_Lambda DP_SpaceToDepth DP_ReLU DP_LeakyReLU "
        "DP_FullSort DP_Householder DP_MaxPool2D DP_AveragePooling2D DP_GlobalAveragePooling2D "
        "DP_ScaledL2NormPooling1D DP_ScaledGlobalL2NormPooling2D DP_QuickFrobeniusDense DP_AddBias DP_Dropout "
        "DP_ContractiveDense DP_Modulus DP_Embedding DP_GNP_Factory DP_Conv1D DP_DepthwiseConv2D DP_PatchEmbedding "
        "DP_ContractiveConv2D DP_Scattering2D DP_GroupNormalization"
    ),
    "losses": (
        "DP_Loss DP_TauCategoricalCrossentropy DP_TauBCE DP_KCosineSimilarity DP_MulticlassHKR DP_MulticlassKR "
        "DP_MulticlassHinge DP_MeanAbsoluteError"
    ),
    "pipeline": (
        "DatasetMetadata load_and_prepare_images_data bound_clip_value bound_normalize default_delta_value "
        "load_images load_adbench_data prepare_tabular_data"
    ),
    "initializers": "FourierWaves",
    "optimizers": "LayerwiseSGD",
    "features": "FourierFeatures SceneFeatures StrokeFeatures deskew draw_strokes",
    "robustness": "CertifiedAccuracy certified_accuracy",
    "sensitivity": "get_max_epochs",
    "accounting": "DPGD_Mechanism calibrate_noise",
    "sampling": "poisson_batches",
    "testing": "LayerCheckError ROUNDING_TOLERANCE WorstCase check_dp_layer search_worst_case",
    "conversion": "Conversion ConversionEntry ConversionError ConversionReport conversion_report convert",
}

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(ROOT)], "deel.lipdp.")
    if not module.name.rsplit(".", 1)[-1].startswith("_")
)


def rooms(path):
    """The names of the top-level modules of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deel.lipdp"):
            parts = node.module.split(".")[2:]
            yield from parts[:1] or (alias.name for alias in node.names)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_point_one_way(path):
    relative = path.relative_to(ROOT)
    room = relative.parts[0].removesuffix(".py")
    if room == "__init__":  # for type checkers only: that nothing is imported is tested below
        assert sorted(rooms(path)) == sorted(deel.lipdp._LAZY.values())
        return
    assert room in ORDER, f"say in LEVELS where {room} belongs"
    wrong = [other for other in rooms(path) if other in ORDER and ORDER[other] > ORDER[room]]
    assert not wrong, f"{relative} imports {wrong}"


@pytest.mark.parametrize("module", ESTABLISHED)
def test_established_paths(module):
    loaded = importlib.import_module(f"deel.lipdp.{module}")
    for name in ESTABLISHED[module].split():
        assert name in loaded.__all__
        assert hasattr(loaded, name)


@pytest.mark.parametrize("name", MODULES)
def test_public_names_exist_and_have_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", []):
        value = getattr(module, public)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        assert value.__doc__, f"{name}.{public} has no docstring"
        if inspect.isclass(value) and value.__module__ == name:
            for method, function in vars(value).items():
                keras_own = any(hasattr(base, method) for base in value.__mro__[1:])
                if inspect.isfunction(function) and not method.startswith("_") and not keras_own:
                    assert function.__doc__, f"{name}.{public}.{method} has no docstring"


def public_functions(value):
    """A function; of a class, what the package defines for its users: constructor, `__call__`, methods, properties."""
    if inspect.isfunction(value):
        yield value
    elif inspect.isclass(value):
        own = [cls for cls in value.__mro__ if cls.__module__.startswith("deel.lipdp")]
        for name, member in (item for cls in own for item in vars(cls).items()):
            if name.startswith("_") and name not in ("__init__", "__call__"):
                continue
            if isinstance(member, property):
                yield from filter(None, (member.fget, member.fset, member.fdel))
            elif isinstance(member, functools.cached_property):
                yield member.func
            else:
                yield from filter(inspect.isfunction, [getattr(member, "__func__", member)])


def unannotated(function):
    """Parameters without an annotation, and `return`."""
    signature = inspect.signature(function)
    annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    annotations["return"] = signature.return_annotation
    missing = [name for name, annotation in annotations.items() if annotation is inspect.Signature.empty]
    return [name for name in missing if name not in ("self", "cls")]


def test_public_signatures_are_annotated():
    names = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]
    modules = map(importlib.import_module, names)
    values = [getattr(module, name) for module in modules for name in getattr(module, "__all__", [])]
    functions = {function for value in values for function in public_functions(value)}
    missing = {
        f"{function.__module__}.{function.__qualname__}: {', '.join(unannotated(function))}"
        for function in functions
        if unannotated(function)
    }
    assert not missing, "\n".join(sorted(missing))


def test_lazy_names():
    for name in deel.lipdp.__all__:
        assert getattr(deel.lipdp, name)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = deel.lipdp.nothing_of_the_kind


def test_import_starts_no_heavy_library():
    code = "import sys, deel.lipdp, deel.lipdp.accounting; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    heavy = {"tensorflow", "keras", "matplotlib", "sklearn", "wandb", "pandas", "autodp", "deel.lip"}
    assert not heavy & set(modules)


def test_training_modules_start_no_data_set_or_plotting_library():
    code = (
        "import sys, keras, tensorflow; before = set(sys.modules); "
        "import deel.lipdp.model, deel.lipdp.pipeline; print(*set(sys.modules) - before)"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert "deel.lipdp.model" in modules
    assert not {"matplotlib", "sklearn", "wandb", "tensorflow_datasets", "autodp"} & set(modules)


def test_deel_is_a_namespace_shared_with_deel_lip():
    import deel.lip

    assert not (ROOT.parent / "__init__.py").exists()
    assert deel.lip.__file__
