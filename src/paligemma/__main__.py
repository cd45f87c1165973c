"""`python -m paligemma` is the command line."""

from paligemma.cli import main

if __name__ == "__main__":
    main()
