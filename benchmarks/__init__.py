"""Benchmarks: each script prints one table, ours beside a peer, measured in one run."""
