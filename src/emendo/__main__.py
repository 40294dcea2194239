"""`python -m emendo` is the command `emendo`."""

from emendo.cli import main

if __name__ == "__main__":
    main()
