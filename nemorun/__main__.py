"""`python -m nemorun`: the command line."""

from nemorun.cli.main import main

if __name__ == "__main__":
    main()
