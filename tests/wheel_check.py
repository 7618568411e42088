"""Builds a release, installs its wheel in a clean environment beside deel-lip, and runs the demo."""

import pathlib
import subprocess
import sys
import tempfile
import venv

ROOT = pathlib.Path(__file__).parents[1]


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        subprocess.run(
            [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(ROOT)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        assert len(list((folder / "dist").glob("*.tar.gz"))) == 1  # the wheel is made from it
        [wheel] = (folder / "dist").glob("*.whl")
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(wheel)], check=True)
        code = "import deel.lip, deel.lipdp.model as m; assert 'env' in m.__file__, m.__file__"
        subprocess.run([str(python), "-c", code], check=True, cwd=folder)
        # The weights of the features are in the wheel.
        code = "import numpy as np, deel.lipdp.features as f; f.SceneFeatures()(np.ones((1, 32, 32, 3)))"
        subprocess.run([str(python), "-c", code], check=True, cwd=folder)
        subprocess.run([str(python), "-m", "deel.lipdp", "demo", "--output", "run"], check=True, cwd=folder)
        assert (folder / "run" / "privacy.json").exists()
        # The template of the report is in it too.
        subprocess.run([str(python), "-m", "deel.lipdp", "report", "run"], check=True, cwd=folder)
        assert (folder / "report.html").exists()
    print("wheel: installed beside deel-lip, demo and report run")


if __name__ == "__main__":
    main()
