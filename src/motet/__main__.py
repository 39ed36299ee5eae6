"""`python -m motet`: the command in an environment whose scripts are not on the path."""

from motet.cli import main

if __name__ == "__main__":
    main()
