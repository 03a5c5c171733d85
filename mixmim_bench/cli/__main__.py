"""`python -m mixmim_bench.cli` is the same as `mixmim-bench`."""

from mixmim_bench.cli import main

if __name__ == "__main__":
    main()
