"""`python -m benchmarks`."""

from benchmarks.step import main

if __name__ == "__main__":
    main()
