"""sim: a SimPy model of training GLM-5 on a cluster. Imports neither torch nor numpy."""
