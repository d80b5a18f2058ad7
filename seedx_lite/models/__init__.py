"""The models of SEED-X, one file per box of the paper's figure, under the official parameter names."""
