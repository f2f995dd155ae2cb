"""The drills of `make drills`, a file for each kind of trouble: who dies, what a disk does, who writes beside whom."""
