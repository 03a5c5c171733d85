"""Run the suite: the same as `mixmim-bench run`."""

import sys

from mixmim_bench.cli import main

if __name__ == "__main__":
    main(args=["run", *sys.argv[1:]], prog_name="mixmim-bench")
