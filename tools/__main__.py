"""`python -m tools` is the same as `nightbridge`."""

from tools.app import main

if __name__ == "__main__":
    main()
