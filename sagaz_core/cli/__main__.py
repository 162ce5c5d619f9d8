"""`python -m sagaz_core.cli` is `sagaz`."""

from sagaz_core.cli.app import main

if __name__ == "__main__":
    main()
