"""`python -m somvq` is `somvq`."""

from somvq.cli import main

if __name__ == "__main__":
    main()
