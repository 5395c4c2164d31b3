"""What the learner fills in: one file of stubs a paper."""
