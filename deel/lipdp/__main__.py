"""`python -m deel.lipdp`, the same as `lipdp`."""

from deel.lipdp.cli import app

if __name__ == "__main__":
    app(prog_name="lipdp")
