"""Grading many submissions, sealed. A unit is one submission's answer to one paper."""
