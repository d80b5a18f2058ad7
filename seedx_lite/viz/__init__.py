"""Figures of the book: one style, one set of drawing functions."""
