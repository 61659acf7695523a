"""The comparison: every system trained and judged alike on one prepared set, seed by seed, and one report of it all."""
