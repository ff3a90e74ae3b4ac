"""`python -m search` is `kdsearch`."""

from search.cli import main

if __name__ == "__main__":
    main()
