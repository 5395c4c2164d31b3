"""The sealed judge: tests, oracle and verdict in one process, the submission in another."""
