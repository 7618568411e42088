"""Packaging of `lipdp`; `deel` is a namespace shared with deel-lip."""

import pathlib

from setuptools import find_namespace_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = "0.1.0"

setup(
    name="lipdp",
    version=VERSION,
    description="Differentially private training of Lipschitz Keras networks without per-example gradient clipping",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url="https://github.com/deel-ai/lipdp",
    license="MIT",
    packages=find_namespace_packages(include=["deel.*"]),
    package_data={"deel.lipdp": ["py.typed", "scenes.npz", "report.html.jinja"]},
    python_requires=">=3.10",
    install_requires=[
        "tensorflow>=2.18",
        "keras>=3.8",
        "numpy",
        "scipy",
        "deel-lip>=1.5.0",
        "autodp>=0.2.3.1",
        "dp-accounting>=0.6.0",
        "scikit-learn",
        "matplotlib",
        "typer>=0.12",
        "jinja2",
        "markdown-it-py",
    ],
    extras_require={
        "dev": [
            "pytest",
            "pytest-xdist",
            "ruff",
            "mypy",
            "build",
            "wandb",
            "cryptography",
            "tensorboard",
            "ipykernel",
            "nbconvert",
            "pandas",
            "papermill",
        ],
        "secure": ["cryptography"],
        "docs": ["mkdocs>=1.6", "mkdocs-material", "mkdocstrings[python]", "mkdocs-jupyter"],
        "wandb": ["wandb"],
        "experiments": ["wandb", "pandas"],
    },
    entry_points={"console_scripts": ["lipdp = deel.lipdp.cli:app"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "License :: OSI Approved :: MIT License",
        "Operating System :: OS Independent",
    ],
)
