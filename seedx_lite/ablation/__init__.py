"""Grids of variants and seeds: `grid.py` trains, measures and keeps their cells, the others say what is compared."""
