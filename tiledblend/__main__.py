"""`python -m tiledblend`: the same as the `tiledblend` command."""

from tiledblend.supervise import supervised


def main() -> None:
    """Entry point: the command under a parent that tells how it died."""
    supervised(_command)


def _command() -> None:
    # Not before the fork: the parent needs none of it.
    from tiledblend.cli import main as command

    command()


if __name__ == "__main__":
    main()
