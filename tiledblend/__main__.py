"""`python -m tiledblend`: the same as the `tiledblend` command."""

import os

from tiledblend.guard.supervise import supervised


def main() -> None:
    """Entry point: the command under a parent that tells how it died."""
    supervised(_command)


def _command() -> None:
    # Tiles are what runs in parallel: numpy's library would start a thread per CPU as soon as it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Not before the fork: the parent needs none of it.
    from tiledblend.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
