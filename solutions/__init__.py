"""One good answer a paper, the source of its stub, and beside it what a teacher knows."""
