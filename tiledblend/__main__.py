"""`python -m tiledblend`: the same as the `tiledblend` command."""

from tiledblend.cli import main

if __name__ == "__main__":
    main()
