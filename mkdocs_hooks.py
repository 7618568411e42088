"""The page of the command line, made from the commands themselves."""

import subprocess
import sys

from mkdocs.structure.files import File


def on_files(files, config):
    """Adds `api/cli.md`."""
    command = [sys.executable, "-m", "typer", "deel.lipdp.cli", "utils", "docs", "--name", "lipdp"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    files.append(File.generated(config, "api/cli.md", content=text))
    return files
