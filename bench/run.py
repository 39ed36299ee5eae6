"""`make bench`: the comparisons that run on this machine, one after the other. Options go to each of them."""

from __future__ import annotations

import sys

import quickstart_vs_trl

if __name__ == "__main__":
    sys.exit(quickstart_vs_trl.main())
