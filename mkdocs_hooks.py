"""The page of the command line, made from the commands themselves."""

import os
import subprocess
import sys

from mkdocs.structure.files import File


def on_files(files, config):
    """Adds `api/cli.md`."""
    command = [sys.executable, "-m", "typer", "deel.lipdp.cli", "utils", "docs", "--name", "lipdp"]
    environment = os.environ | {"PYTHONUTF8": "1"}
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8", env=environment).stdout
    files.append(File.generated(config, "api/cli.md", content=text))
    return files
