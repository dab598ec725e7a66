"""Compare optimisation objective breakdown with the usual ways of training on few images."""
